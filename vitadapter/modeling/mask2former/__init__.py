"""Mask2Former (arXiv 2112.01527): one head for semantic, instance and panoptic segmentation."""

from .criterion import SetCriterion
from .head import Mask2FormerHead
from .matcher import HungarianMatcher
from .pixel_decoder import MSDeformAttnPixelDecoder
from .transformer_decoder import MaskedTransformerDecoder, MaskPrediction

__all__ = [
    "HungarianMatcher",
    "MSDeformAttnPixelDecoder",
    "Mask2FormerHead",
    "MaskPrediction",
    "MaskedTransformerDecoder",
    "SetCriterion",
]
