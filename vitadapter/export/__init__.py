"""Trained models in files that run without their config, and predictions of such files."""

import vitadapter.detectron2_required  # noqa: F401

# isort: split
from .exporting import export
from .predictor import ExportedPredictor

__all__ = ["ExportedPredictor", "export"]
