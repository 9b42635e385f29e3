"""Nets, which are the plain Vision Transformers that `ViTAdapter` wraps."""

from .beit import BEiT
from .detectron2_net import Detectron2Net, as_net
from .timm_vit import TimmViT
from .uni_perceiver import UniPerceiver
from .vit import ViT

__all__ = ["BEiT", "Detectron2Net", "TimmViT", "UniPerceiver", "ViT", "as_net"]
