"""Dense detectors: ATSS and GFL."""

from .atss import ATSSHead, ATSSMatcher
from .detector import SingleAnchorDetector
from .gfl import GFLHead

__all__ = ["ATSSHead", "ATSSMatcher", "GFLHead", "SingleAnchorDetector"]
