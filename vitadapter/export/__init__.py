"""Trained models in files that run without their config, and predictions of such files."""

from .exporting import export
from .predictor import ExportedPredictor

__all__ = ["ExportedPredictor", "export"]
