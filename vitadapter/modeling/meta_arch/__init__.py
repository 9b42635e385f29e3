"""Whole models beyond Detectron2's."""

from .htc import HybridTaskCascade

__all__ = ["HybridTaskCascade"]
