"""Backbones: plain ViTs (nets), the adapter and other ways to make feature pyramids, and necks."""

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
    "ChannelMapper",
    "Detectron2Net",
    "ExtraAttention",
    "LastLevelConvs",
    "LastLevelMaxPool2x2",
    "LoRA",
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
