"""Backbones: plain ViTs (nets), what turns them into feature pyramids, and necks."""

from .beit import BEiT
from .channel_mapper import ChannelMapper, LastLevelMaxPool2x2
from .extra_attention import ExtraAttention
from .last_level_convs import LastLevelConvs
from .simple_feature_pyramid import SimpleFeaturePyramid
from .timm_vit import TimmViT
from .uni_perceiver import UniPerceiver
from .vit import ViT
from .vit_adapter import ViTAdapter
from .vit_baseline import ViTBaseline

__all__ = [
    "BEiT",
    "ChannelMapper",
    "ExtraAttention",
    "LastLevelConvs",
    "LastLevelMaxPool2x2",
    "SimpleFeaturePyramid",
    "TimmViT",
    "UniPerceiver",
    "ViT",
    "ViTAdapter",
    "ViTBaseline",
]
