"""What models cost: parameters and FLOPs by part."""

from .flops import FlopCounter
from .model import ModelAnalysis, PartCosts, analyze_model

__all__ = ["FlopCounter", "ModelAnalysis", "PartCosts", "analyze_model"]
