"""Mask2Former (arXiv 2112.01527): one head for semantic, instance and panoptic segmentation."""

from .criterion import HungarianMatcher, SetCriterion
from .inference import InstanceInference, PanopticInference, first_classes
from .mask2former import Mask2Former, Mask2FormerHead
from .pixel_decoder import MSDeformAttnPixelDecoder
from .targets import MaskTargets, SegmentTargets, SemanticTargets
from .transformer_decoder import MaskedTransformerDecoder, MaskPrediction

__all__ = [
    "HungarianMatcher",
    "InstanceInference",
    "MSDeformAttnPixelDecoder",
    "Mask2Former",
    "Mask2FormerHead",
    "MaskPrediction",
    "MaskTargets",
    "MaskedTransformerDecoder",
    "PanopticInference",
    "SegmentTargets",
    "SemanticTargets",
    "SetCriterion",
    "first_classes",
]
