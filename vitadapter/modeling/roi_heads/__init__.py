"""Cascade R-CNN and Hybrid Task Cascade, as in the official release."""

from .cascade import CascadeROIHeads
from .htc import BestProposalMatcher, HTCMaskHead, HTCROIHeads, HybridTaskCascade
from .semantic_head import FusedSemanticHead

__all__ = [
    "BestProposalMatcher",
    "CascadeROIHeads",
    "FusedSemanticHead",
    "HTCMaskHead",
    "HTCROIHeads",
    "HybridTaskCascade",
]
