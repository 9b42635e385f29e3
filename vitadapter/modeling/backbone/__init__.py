"""Backbones: plain ViTs (nets), the adapter and other ways to make feature pyramids, and necks."""

from .attention import CSwinAttention, GlobalAttention, PaleAttention
from .necks import (
    ChannelMapper,
    ExtraAttention,
    LastLevelConvs,
    LastLevelMaxPool2x2,
    SimpleFeaturePyramid,
)
from .nets import (
    BEiT,
    Detectron2Net,
    LoRA,
    TimmViT,
    TrainedParts,
    UniPerceiver,
    VisualPrompts,
    ViT,
    merge_lora,
)
from .vit_adapter import ViTAdapter
from .vit_baseline import ViTBaseline
from .vit_features import ViTFeatures
from .vit_spatial_prior import ViTSpatialPrior

__all__ = [
    "BEiT",
    "CSwinAttention",
    "ChannelMapper",
    "Detectron2Net",
    "ExtraAttention",
    "GlobalAttention",
    "LastLevelConvs",
    "LastLevelMaxPool2x2",
    "LoRA",
    "PaleAttention",
    "SimpleFeaturePyramid",
    "TimmViT",
    "TrainedParts",
    "UniPerceiver",
    "ViT",
    "ViTAdapter",
    "ViTBaseline",
    "ViTFeatures",
    "ViTSpatialPrior",
    "VisualPrompts",
    "merge_lora",
]
