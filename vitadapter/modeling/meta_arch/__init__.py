"""Detectors that Detectron2 lacks."""

from .atss import ATSS, ATSSHead
from .gfl import GFL, GFLHead

__all__ = ["ATSS", "GFL", "ATSSHead", "GFLHead"]
