"""Losses of GFL (arXiv 2006.04388): classes of graded quality, boxes as distributions."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["distribution_focal_loss", "quality_focal_loss"]


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """`|y - sigmoid(x)| ** beta * BCE(sigmoid(x), y)` (equation 3), element by element.

    With y in {0, 1} and without the class weight it is the focal loss.

    Args:
        logits: x, of any shape.
        quality: y in [0, 1], of the same shape: the IoU of the prediction where the class is
            there, else 0. It gets no gradient.
        beta: focusing parameter; default from the paper.
    """
    quality = quality.detach()
    modulation = (quality - logits.sigmoid()).abs() ** beta
    return modulation * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropies of the two bins beside the target, each weighted by its nearness (eq. 6).

    Args:
        logits: (n, bins); bin i stands for the value i.
        target: (n,) values in [0, bins - 1).

    Returns:
        Tensor: (n,).
    """
    left = target.long()
    right_weight = target - left
    return (
        F.cross_entropy(logits, left, reduction="none") * (1 - right_weight)
        + F.cross_entropy(logits, left + 1, reduction="none") * right_weight
    )
