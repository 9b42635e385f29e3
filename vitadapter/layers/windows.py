"""Windows of a grid of tokens, in whose attention plain ViTs save work (paper section 4.1, ViTDet).

In programs of `torch.compile`, splitting and joining are operators of their own. Written out, they
have formulas of the sizes on which PyTorch branches, so that each image size would need a program.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitadapter.layers.fast.switch import is_compiled, is_eager
from vitadapter.layers.sizes import holds_for_all_sizes

__all__ = ["join_windows", "split_windows"]


def split_windows(grid: Tensor, side: int) -> Tensor:
    """Pads a grid with zero tokens to whole windows, at the bottom and at the right, and splits it.

    Args:
        grid: tokens (B, h, w, C).
        side: of the windows, in tokens.

    Returns:
        (B, rows * columns, side, side, C).
    """
    split = _split_op if is_compiled() else _split
    return split(grid, side)


def join_windows(windows: Tensor, hw: tuple[int, int]) -> Tensor:
    """Puts the windows of a grid together and leaves out its padding.

    Args:
        windows: (B, rows * columns, side, side, C).
        hw: the grid (h, w) without padding.

    Returns:
        Tokens (B, h, w, C).
    """
    join = _join_op if is_compiled() else _join
    return join(windows, *hw)


def _counts(h: int, w: int, side: int) -> tuple[int, int]:
    """Rows and columns of windows, the last of which may be incomplete."""
    return (h + side - 1) // side, (w + side - 1) // side


def _split(grid: Tensor, side: int) -> Tensor:
    batch, h, w, channels = grid.shape
    rows, columns = _counts(h, w, side)
    bottom, right = rows * side - h, columns * side - w
    if not (holds_for_all_sizes(bottom == 0) and holds_for_all_sizes(right == 0)):
        grid = F.pad(grid, (0, 0, 0, right, 0, bottom))
    # Detectron2's functions do the same, but then derive the batch size from the number of
    # windows, which is too complicated a formula for programs of any image size.
    windows = grid.reshape(batch, rows, side, columns, side, channels).transpose(2, 3)
    return windows.reshape(batch, rows * columns, side, side, channels)


def _join(windows: Tensor, h: int, w: int) -> Tensor:
    batch, _, side, _, channels = windows.shape
    rows, columns = _counts(h, w, side)
    x = windows.reshape(batch, rows, columns, side, side, channels).transpose(2, 3)
    x = x.reshape(batch, rows * side, columns * side, channels)
    if is_eager():  # the gradient of this takes one pass, and that of two slices four
        bottom, right = rows * side - h, columns * side - w
        return F.pad(x, (0, 0, 0, -right, 0, -bottom)) if bottom or right else x
    return x[:, :h, :w].contiguous()


@torch.library.custom_op("vitadapter::split_windows", mutates_args=())
def _split_op(grid: Tensor, side: int) -> Tensor:
    windows = _split(grid, side).contiguous()
    # The result of an operator is no view of what it is given.
    return windows.clone() if windows.data_ptr() == grid.data_ptr() else windows


@_split_op.register_fake
def _(grid: Tensor, side: int) -> Tensor:
    batch, h, w, channels = grid.shape
    rows, columns = _counts(h, w, side)
    return grid.new_empty(batch, rows * columns, side, side, channels)


@torch.library.custom_op("vitadapter::join_windows", mutates_args=())
def _join_op(windows: Tensor, h: int, w: int) -> Tensor:
    grid = _join(windows, h, w).contiguous()
    return grid.clone() if grid.data_ptr() == windows.data_ptr() else grid


@_join_op.register_fake
def _(windows: Tensor, h: int, w: int) -> Tensor:
    return windows.new_empty(windows.shape[0], h, w, windows.shape[-1])


# Each is the gradient of the other: padding is zero, and what is left out has no gradient.


def _keep_grid(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.hw = inputs[0].shape[1:3]


def _split_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _join_op(grad, *ctx.hw), None


def _keep_side(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
    ctx.side = inputs[0].shape[3]


def _join_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _split_op(grad, ctx.side), None, None


_split_op.register_autograd(_split_backward, setup_context=_keep_grid)
_join_op.register_autograd(_join_backward, setup_context=_keep_side)
