"""Nets, which are the plain Vision Transformers that `ViTAdapter` wraps."""

from .beit import BEiT
from .timm_vit import TimmViT
from .uni_perceiver import UniPerceiver
from .vit import ViT

__all__ = ["BEiT", "TimmViT", "UniPerceiver", "ViT"]
