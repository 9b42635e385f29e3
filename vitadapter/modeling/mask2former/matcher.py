"""Matching of predicted to true segments (DETR, arXiv 2005.12872, section 3.1)."""

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .point_sampling import RandomPoints, sample_at_points, uniform_points

__all__ = ["HungarianMatcher"]


class HungarianMatcher:
    """One-to-one matching of the lowest total cost: classification, cross entropy and dice.

    Args:
        class_weight: of the negative probability of the true class.
        mask_weight: of the mean binary cross entropy between masks.
        dice_weight: of one minus the masks' dice coefficient.
        num_points: points on which masks are compared, the same for all pairs.
        random_points: draws them.

    Raises:
        ValueError: no point, or a negative weight, or all of them zero.
    """

    def __init__(
        self,
        *,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        num_points: int = 12544,
        random_points: RandomPoints = uniform_points,
    ) -> None:
        weights = (class_weight, mask_weight, dice_weight)
        if not all(w >= 0 for w in weights) or max(weights) == 0 or num_points < 1:
            raise ValueError(
                "weights must not be negative nor all zero, and num_points be at least 1, got "
                f"class_weight, mask_weight, dice_weight = {weights}, {num_points=}"
            )
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.num_points = num_points
        self.random_points = random_points

    @torch.no_grad()
    def __call__(
        self, class_logits: Tensor, mask_logits: Tensor, classes: Tensor, masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            class_logits: (Q, K + 1) of one image.
            mask_logits: (Q, h, w).
            classes: (N,) of the true segments; N may be 0, or more than Q.
            masks: (N, H, W), floating point.

        Returns:
            Indices (M,) of queries and (M,) of the segments that they are matched with, with
            M = min(Q, N). Where N > Q the segments that fit worst stay unmatched.

        Raises:
            FloatingPointError: a cost is not finite, because a prediction is not.
        """
        costs = self.costs(class_logits, mask_logits, classes, masks).cpu()
        if not costs.isfinite().all():
            raise FloatingPointError(
                "matching needs finite costs, but "
                f"{_non_finite(class_logits)} class logits and {_non_finite(mask_logits)} mask "
                "logits are NaN or infinite: the training has diverged, or half precision "
                "overflowed; try a lower learning rate, gradient clipping or bfloat16"
            )
        rows, columns = linear_sum_assignment(costs.numpy())
        device = class_logits.device
        return torch.as_tensor(rows, device=device), torch.as_tensor(columns, device=device)

    def costs(
        self, class_logits: Tensor, mask_logits: Tensor, classes: Tensor, masks: Tensor
    ) -> Tensor:
        """Costs (Q, N) of all pairs; arguments as of the call."""
        if len(classes) == 0:
            return class_logits.new_zeros(len(class_logits), 0)
        points = self.random_points(1, self.num_points, mask_logits.device)
        logits = sample_at_points(mask_logits, points)  # (Q, P)
        truth = sample_at_points(masks, points)  # (N, P)
        class_cost = -class_logits.softmax(-1)[:, classes]
        return (
            self.class_weight * class_cost
            + self.mask_weight * _cross_entropy_costs(logits, truth)
            + self.dice_weight * _dice_costs(logits, truth)
        )


def _cross_entropy_costs(logits: Tensor, truth: Tensor) -> Tensor:
    """(Q, P) and (N, P) to the mean binary cross entropy (Q, N) of all pairs.

    -t log s(x) - (1 - t) log(1 - s(x)) = softplus(x) - t x, so one product serves.
    """
    return (F.softplus(logits).sum(-1, keepdim=True) - logits @ truth.T) / logits.shape[-1]


def _dice_costs(logits: Tensor, truth: Tensor) -> Tensor:
    """(Q, P) and (N, P) to one minus the smoothed dice coefficient (Q, N) of all pairs."""
    probabilities = logits.sigmoid()
    intersection = probabilities @ truth.T
    total = probabilities.sum(-1)[:, None] + truth.sum(-1)[None]
    return 1 - (2 * intersection + 1) / (total + 1)


def _non_finite(x: Tensor) -> int:
    return int((~x.isfinite()).sum())
