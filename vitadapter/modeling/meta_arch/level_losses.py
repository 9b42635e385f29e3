"""Losses of dense predictions by pyramid level."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["sum_by_level"]


def sum_by_level(loss: Tensor, sizes: Sequence[int], where: Tensor | None = None) -> Tensor:
    """Sums a loss per anchor over the images and the anchors of each level.

    Args:
        loss: (N, R), or (n,) for those anchors that `where` picks.
        sizes: number of anchors of each level, R together.
        where: (N, R) with n trues, or None.

    Returns:
        Tensor: (L,), connected to the predictions even where nothing is summed, because
        distributed training stops at a parameter without gradient.
    """
    if where is not None:
        loss = torch.zeros_like(where, dtype=loss.dtype).masked_scatter(where, loss)
    return torch.stack([level.sum() for level in loss.split(list(sizes), dim=1)])
