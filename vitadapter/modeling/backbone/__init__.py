"""Backbones: plain ViTs (nets) and what turns them into feature pyramids."""

from .last_level_convs import LastLevelConvs
from .simple_feature_pyramid import SimpleFeaturePyramid
from .vit import ViT
from .vit_adapter import ViTAdapter
from .vit_baseline import ViTBaseline

__all__ = ["LastLevelConvs", "SimpleFeaturePyramid", "ViT", "ViTAdapter", "ViTBaseline"]
