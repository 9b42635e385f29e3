"""Faster ways to run PyTorch's layers, or ways that need less memory, with the same results.

State dicts are the same too. `plain_layers` switches all of it off.
"""

from vitadapter.layers.fast.convolution import PointwiseConv2d, UpsampleConv2d, add_upsampled
from vitadapter.layers.fast.linear import linear, run_linear
from vitadapter.layers.fast.norm import add_and_norm
from vitadapter.layers.fast.recompute import (
    ActCheckpoint,
    check_act_checkpoint,
    recomputed,
    run_and_recompute,
    run_with_checkpoint,
)
from vitadapter.layers.fast.switch import as_on_gpu, is_plain, plain_layers

__all__ = [
    "ActCheckpoint",
    "PointwiseConv2d",
    "UpsampleConv2d",
    "add_and_norm",
    "add_upsampled",
    "as_on_gpu",
    "check_act_checkpoint",
    "is_plain",
    "linear",
    "plain_layers",
    "recomputed",
    "run_and_recompute",
    "run_linear",
    "run_with_checkpoint",
]
