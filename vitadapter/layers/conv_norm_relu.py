"""The convolution that most heads are made of."""

from collections.abc import Callable

import vitadapter.detectron2_required  # noqa: F401

# isort: split
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from torch import nn

__all__ = ["conv_norm_relu"]


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel_size: int, norm: str | Callable[[int], nn.Module]
) -> Conv2d:
    """Makes a convolution that keeps the size, has no bias if a norm follows, and ends in a ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, odd.
        norm: Detectron2's norm name, or a callable; "" for none.
    """
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=norm == "",
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
