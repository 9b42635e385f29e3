"""Relative position bias tables of BEiT for other windows or image sizes."""

import math

import torch
from torch import Tensor

from vitadapter.modeling.backbone.nets.relative_position import spline_matrix

__all__ = ["resize_relative_position_bias_table"]

# Least ratio of the geometric progression in the official loader.
_LOWEST_RATIO = 1.01
# Rows behind the offsets: class token to token, token to class token, class token to itself.
_CLS_ROWS = 3


def resize_relative_position_bias_table(table: Tensor, new_rows: int) -> Tensor:
    """Resizes the table of a square grid as the official loader of BEiT weights does.

    Bicubic spline through geometrically spaced offsets (see ``spline_matrix``). The three rows of
    the class token stay as they are, or are cut where ``new_rows`` has no place for them.

    Args:
        table: (N, heads), N = (2g - 1)^2 offsets of a g x g grid, perhaps 3 more for the class
            token.
        new_rows: the same for the wanted grid: 729 for windows of 14 without class token, 732 with
            one, 12321 for windows of 56, 3972 for images of 512 pixels with class token, ...

    Returns:
        (new_rows, heads), same type; the offsets themselves where they fit already.

    Raises:
        ValueError: rows that belong to no square grid, or rows of a class token that are wanted
            but not there.
    """
    side, has_cls_rows = _side(table.shape[0])
    new_side, wants_cls_rows = _side(new_rows)
    if wants_cls_rows and not has_cls_rows:
        raise ValueError(
            f"a table of {table.shape[0]} rows has none for the class token, "
            f"which {new_rows} rows would need"
        )
    offsets = table[: side**2]
    if new_side != side:
        matrix = torch.tensor(spline_matrix(side, new_side, _LOWEST_RATIO), device=table.device)
        grid = offsets.to(torch.float64).unflatten(0, (side, side))
        offsets = torch.einsum("yi,xj,ijh->yxh", matrix, matrix, grid).flatten(0, 1)
    offsets = offsets.to(table.dtype)
    return torch.cat([offsets, table[side**2 :]]) if wants_cls_rows else offsets.clone()


def _side(rows: int) -> tuple[int, bool]:
    """2g - 1 of a table with so many rows, and whether they include the class token's."""
    for extra in (0, _CLS_ROWS):
        side = math.isqrt(max(rows - extra, 0))
        if side**2 + extra == rows and side % 2 == 1:
            return side, extra > 0
    raise ValueError(
        f"a table for a square grid of g x g tokens has (2g - 1)^2 rows, with a class token 3 "
        f"more, got {rows}"
    )
