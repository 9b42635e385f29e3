"""Detectron2's semantic segmenter with the official release's heads, losses and inference."""

from .auxiliary_head import FCNHead, HeadWithAuxiliary
from .pixel_head import PixelHead
from .segmentor import SemanticSegmentor, WindowedInference
from .semantic_fpn_head import SemanticFPNHead
from .setr_head import SETRUpHead
from .uper_head import UPerHead

__all__ = [
    "FCNHead",
    "HeadWithAuxiliary",
    "PixelHead",
    "SETRUpHead",
    "SemanticFPNHead",
    "SemanticSegmentor",
    "UPerHead",
    "WindowedInference",
]
