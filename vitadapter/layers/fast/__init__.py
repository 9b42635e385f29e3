"""Faster ways to run PyTorch's layers, or ways that need less memory, with the same results.

State dicts are the same too. `plain_layers` switches all of it off.
"""

from vitadapter.layers.fast.convolution import PointwiseConv2d, UpsampleConv2d
from vitadapter.layers.fast.linear import linear, run_linear
from vitadapter.layers.fast.recompute import recomputed, run_and_recompute
from vitadapter.layers.fast.switch import is_plain, plain_layers

__all__ = [
    "PointwiseConv2d",
    "UpsampleConv2d",
    "is_plain",
    "linear",
    "plain_layers",
    "recomputed",
    "run_and_recompute",
    "run_linear",
]
