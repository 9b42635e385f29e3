"""Whole models beyond Detectron2's."""

from .atss import ATSS, ATSSHead
from .gfl import GFL, GFLHead
from .htc import HybridTaskCascade
from .semantic_segmentor import SemanticSegmentor
from .semantic_tta import SemanticSegmentorWithTTA
from .sliding_window import SlidingWindow

__all__ = [
    "ATSS",
    "GFL",
    "ATSSHead",
    "GFLHead",
    "HybridTaskCascade",
    "SemanticSegmentor",
    "SemanticSegmentorWithTTA",
    "SlidingWindow",
]
