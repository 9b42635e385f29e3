"""What models cost: parameters and FLOPs by part."""

import vitadapter.detectron2_required  # noqa: F401

# isort: split
from .flops import FlopCounter
from .model import ModelAnalysis, PartCosts, analyze_model

__all__ = ["FlopCounter", "ModelAnalysis", "PartCosts", "analyze_model"]
