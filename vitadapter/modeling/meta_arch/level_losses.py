"""Losses of dense predictions by pyramid level."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["count_samples", "sum_by_level"]


def count_samples(positive: Tensor) -> Tensor:
    """What a loss of all anchors is divided by: an image without positives counts as one.

    As in the official release: a batch without objects has the mean of its images' losses, not
    their sum.

    Args:
        positive: (N, R).

    Returns:
        Tensor: () of at least 1.
    """
    return positive.sum(1).clamp(min=1).sum()


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
