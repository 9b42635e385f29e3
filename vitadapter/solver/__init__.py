"""Optimizers, parameter groups and learning-rate schedules."""

import vitadapter.detectron2_required  # noqa: F401

from .clipped_adamw import ClippedAdamW
from .param_groups import (
    FactorByName,
    LayerDecay,
    Mask2FormerLayerDecay,
    NoDecayByName,
    NoDecayOneDim,
    get_optimizer_params,
)
from .schedule import PerEpoch, warm_up

__all__ = [
    "ClippedAdamW",
    "FactorByName",
    "LayerDecay",
    "Mask2FormerLayerDecay",
    "NoDecayByName",
    "NoDecayOneDim",
    "PerEpoch",
    "get_optimizer_params",
    "warm_up",
]
