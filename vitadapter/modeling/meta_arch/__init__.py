"""Whole models beyond Detectron2's."""

from .atss import ATSS, ATSSHead
from .gfl import GFL, GFLHead
from .htc import HybridTaskCascade

__all__ = ["ATSS", "GFL", "ATSSHead", "GFLHead", "HybridTaskCascade"]
