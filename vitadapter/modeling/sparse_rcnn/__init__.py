"""Sparse R-CNN (arXiv 2011.12450): learned proposals instead of anchors, no suppression."""

from .dynamic_head import DynamicConv, DynamicHead
from .set_criterion import HungarianMatcher, SetCriterion
from .sparse_rcnn import SparseRCNN

__all__ = ["DynamicConv", "DynamicHead", "HungarianMatcher", "SetCriterion", "SparseRCNN"]
