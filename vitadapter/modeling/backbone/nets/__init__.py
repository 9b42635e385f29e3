"""Nets, which are the plain Vision Transformers that `ViTAdapter` wraps."""

from .beit import BEiT
from .detectron2_net import Detectron2Net, as_net
from .timm_vit import TimmViT
from .tuning import LoRA, TrainedParts, VisualPrompts, merge_lora
from .uni_perceiver import UniPerceiver
from .vit import ViT

__all__ = [
    "BEiT",
    "Detectron2Net",
    "LoRA",
    "TimmViT",
    "TrainedParts",
    "UniPerceiver",
    "ViT",
    "VisualPrompts",
    "as_net",
    "merge_lora",
]
