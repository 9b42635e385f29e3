"""The relative position bias from a table of offsets, for the table's grid and for others."""

from functools import lru_cache

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

from vitadapter.layers.fast.switch import is_eager
from vitadapter.layers.sizes import check_fixed

__all__ = ["relative_position_bias", "resize_relative_positions", "spline_matrix"]


def relative_position_bias(table: Tensor) -> Tensor:
    """Returns the logit bias between all tokens of a grid.

    It uses views of the table instead of an index, which would be as large as the result and need
    scattered additions in the backward pass.

    Args:
        table: (heads, 2h - 1, 2w - 1), with a value for each offset (dy, dx) of query minus key,
            starting at (1 - h, 1 - w).

    Returns:
        (heads, h * w, h * w), for queries and keys in row-major order.
    """
    num_heads, rows, columns = table.shape
    h, w = (rows + 1) // 2, (columns + 1) // 2
    # [., a, b, k, l] is the value at key minus query (a + k, b + l) - (h - 1, w - 1)
    windows = table.flip(1, 2).unfold(1, h, 1).unfold(2, w, 1)
    return windows.flip(1, 2).reshape(num_heads, h * w, h * w)


def resize_relative_positions(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes a table for another grid.

    Offsets that the table does not have are interpolated as in the fine-tuning of BEiT: the known
    ones are moved to a geometric progression that reaches the farthest new offset, so that near
    offsets nearly keep their values. For a smaller grid, offsets are selected, not interpolated.

    Args:
        table: (heads, 2h - 1, 2w - 1).
        size: the new (2h - 1, 2w - 1).

    Returns:
        (heads, *size), differentiable; the table itself if the size is the same.
    """
    check_fixed("BEiT's global attention", *size)
    for dim, side in enumerate(size, start=1):
        excess = table.shape[dim] - side
        if excess > 0:
            table = table.narrow(dim, excess // 2, side)
        elif excess < 0:
            matrix = _spline_tensor(table.shape[dim], side, table)
            table = (matrix @ table.transpose(dim, 1)).transpose(dim, 1)
    return table


def _spline_tensor(source: int, target: int, like: Tensor) -> Tensor:
    """Returns `spline_matrix` in the dtype and on the device of a tensor.

    It is kept there, since the host would wait for the device in each copy. In a program that is
    traced or compiled, or on fake tensors, it is made anew.
    """
    make = _kept_spline if is_eager() and type(like) is Tensor else _kept_spline.__wrapped__
    return make(source, target, like.dtype, like.device)


@lru_cache(maxsize=64)
def _kept_spline(source: int, target: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # so that it can be used in training later
        return torch.tensor(spline_matrix(source, target), dtype=dtype, device=device)


@lru_cache(maxsize=64)
def spline_matrix(source: int, target: int, lowest_ratio: float = 1.0) -> np.ndarray:
    """Returns the matrix of a cubic spline through geometrically spaced points, at integers.

    The source points are 0, +-1, +-(1 + q), +-(1 + q + q^2), ..., with the ratio q for which the
    last one is `target // 2`. The spline has "not a knot" ends, like FITPACK's interpolating
    splines. Targets beyond the last source point have its value.

    Args:
        source: number of source points, odd.
        target: number of targets -(target // 2) .. target // 2, odd.
        lowest_ratio: minimum of q. The official loader has 1.01, too much for nearly equal sizes.

    Returns:
        (target, source), float64, read-only. The interpolated values are `matrix @ values`.
    """
    ratio = _geometric_ratio(source // 2, target // 2, lowest_ratio)
    positive = np.cumsum(ratio ** np.arange(source // 2))
    points = np.concatenate([-positive[::-1], [0.0], positive])
    targets = np.arange(target) - target // 2
    matrix = np.ones((target, 1))
    if source > 1:
        spline = make_interp_spline(points, np.eye(source), k=min(3, source - 1))
        matrix = spline(np.clip(targets, points[0], points[-1]))
    matrix.flags.writeable = False
    return matrix


def _geometric_ratio(terms: int, total: float, lowest: float) -> float:
    """Finds the ratio in [lowest, 1.5] whose first powers add up to `total`, to 1e-6 as in BEiT."""
    low, high = lowest, 1.5
    ratio = (low + high) / 2
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if np.sum(ratio ** np.arange(terms)) > total:
            high = ratio
        else:
            low = ratio
    return ratio
