"""Whole models that Detectron2 lacks."""

from .semantic_segmentor import SemanticSegmentor
from .semantic_tta import SemanticSegmentorWithTTA
from .sliding_window import SlidingWindow

__all__ = ["SemanticSegmentor", "SemanticSegmentorWithTTA", "SlidingWindow"]
