"""Heads of semantic segmenters, behind the interface of Detectron2's `SemanticSegmentor`."""

from .auxiliary_head import HeadWithAuxiliary
from .fcn_head import FCNHead
from .pixel_head import PixelHead
from .semantic_fpn_head import SemanticFPNHead
from .uper_head import UPerHead

__all__ = ["FCNHead", "HeadWithAuxiliary", "PixelHead", "SemanticFPNHead", "UPerHead"]
