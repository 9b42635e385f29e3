"""Heads on regions of interest beyond Detectron2's."""

from .cascade import CascadeROIHeads
from .htc import HTCMaskHead, HTCROIHeads
from .semantic_head import FusedSemanticHead

__all__ = ["CascadeROIHeads", "FusedSemanticHead", "HTCMaskHead", "HTCROIHeads"]
