"""Faster or leaner forms of PyTorch's layers, with the same results, arguments and state dicts.

`plain_layers` switches them off.
"""

from vitadapter.layers.fast.convolution import PointwiseConv2d, UpsampleConv2d
from vitadapter.layers.fast.linear import Linear, linear
from vitadapter.layers.fast.recompute import recomputed, run_and_recompute
from vitadapter.layers.fast.switch import is_plain, plain_layers

__all__ = [
    "Linear",
    "PointwiseConv2d",
    "UpsampleConv2d",
    "is_plain",
    "linear",
    "plain_layers",
    "recomputed",
    "run_and_recompute",
]
