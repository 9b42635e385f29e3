"""What models cost: parameters and FLOPs by part, and the memory of training and inference."""

import vitadapter.detectron2_required  # noqa: F401

# isort: split
from .fitting import Saving, largest_batch, savings
from .flops import FlopCounter
from .memory import MemoryEstimate, estimate_memory, training_peak
from .model import ModelAnalysis, PartCosts, analyze_model
from .steps import Workload
from .work import Work, count_work, step_work

__all__ = [
    "FlopCounter",
    "MemoryEstimate",
    "ModelAnalysis",
    "PartCosts",
    "Saving",
    "Work",
    "Workload",
    "analyze_model",
    "count_work",
    "estimate_memory",
    "largest_batch",
    "savings",
    "step_work",
    "training_peak",
]
