"""Backbones: plain ViTs (nets) and what turns them into feature pyramids."""

from .simple_feature_pyramid import SimpleFeaturePyramid
from .timm_vit import TimmViT
from .vit import ViT
from .vit_adapter import ViTAdapter
from .vit_baseline import ViTBaseline

__all__ = ["SimpleFeaturePyramid", "TimmViT", "ViT", "ViTAdapter", "ViTBaseline"]
