"""Mask2Former's losses: class, binary cross entropy and dice, after every decoder layer.

Predicted segments are first matched with true ones (DETR, arXiv 2005.12872, section 3.1). Masks are
compared only at sampled points (PointRend, arXiv 1912.08193).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from vitadapter.layers.mean_over_processes import mean_over_processes

from .targets import MaskTargets
from .transformer_decoder import MaskPrediction

__all__ = [
    "HungarianMatcher",
    "RandomPoints",
    "SetCriterion",
    "dice_loss",
    "sample_at_points",
    "uncertain_points",
    "uniform_points",
]


RandomPoints = Callable[[int, int, torch.device], Tensor]
"""Maps (number of masks N, points per mask P, device) to points (N, P, 2), (x, y) in [0, 1]."""


def uniform_points(num_masks: int, num_points: int, device: torch.device) -> Tensor:
    """Draws independent uniform points (N, P, 2)."""
    return torch.rand(num_masks, num_points, 2, device=device)


def sample_at_points(masks: Tensor, points: Tensor) -> Tensor:
    """Samples masks at points bilinearly; they are 0 outside.

    Args:
        masks: (N, h, w).
        points: (N or 1, P, 2) as (x, y) in [0, 1].

    Returns:
        (N, P).
    """
    grid = (2 * points - 1).to(masks.dtype)
    if len(points) == 1:
        # The masks are channels if they share their points, so that these need not be repeated.
        return F.grid_sample(masks[None], grid[:, :, None], align_corners=False)[0, :, :, 0]
    return F.grid_sample(masks[:, None], grid[:, :, None], align_corners=False)[:, 0, :, 0]


def uncertain_points(
    mask_logits: Tensor,
    *,
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
    random_points: RandomPoints,
) -> Tensor:
    """Draws points, some of which lie where the predictions are least certain.

    Args:
        mask_logits: (N, h, w).
        num_points: points per mask P.
        oversample_ratio: the uncertain points are chosen from this many times P candidates.
        importance_sample_ratio: fraction of uncertain points; the others are uniform.
        random_points: draws candidates and uniform points.

    Returns:
        (N, P, 2) as (x, y) in [0, 1].
    """
    device = mask_logits.device
    num_masks = len(mask_logits)
    candidates = random_points(num_masks, int(num_points * oversample_ratio), device)
    uncertainty = -sample_at_points(mask_logits, candidates).abs()
    num_uncertain = int(num_points * importance_sample_ratio)
    chosen = uncertainty.topk(num_uncertain, dim=1, sorted=False).indices  # (N, P')
    uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    uniform = random_points(num_masks, num_points - num_uncertain, device)
    return torch.cat((uncertain, uniform), dim=1)


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """One minus the dice coefficient of each mask, with smoothing 1 and first powers.

    The loss of arXiv 1606.04797 has squares instead.

    Args:
        logits: (M, P) at P points of M masks.
        truth: (M, P) in [0, 1].

    Returns:
        (M,).
    """
    probabilities = logits.sigmoid()
    intersection = (probabilities * truth).sum(-1)
    return 1 - (2 * intersection + 1) / (probabilities.sum(-1) + truth.sum(-1) + 1)


def _cross_entropy_costs(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean binary cross entropy (Q, N) of all pairs of (Q, P) and (N, P).

    Since -t log s(x) - (1 - t) log(1 - s(x)) = softplus(x) - t x, it needs only one product.
    """
    return (F.softplus(logits).sum(-1, keepdim=True) - logits @ truth.T) / logits.shape[-1]


def _dice_costs(logits: Tensor, truth: Tensor) -> Tensor:
    """One minus the smoothed dice coefficient (Q, N) of all pairs of (Q, P) and (N, P)."""
    probabilities = logits.sigmoid()
    intersection = probabilities @ truth.T
    total = probabilities.sum(-1)[:, None] + truth.sum(-1)[None]
    return 1 - (2 * intersection + 1) / (total + 1)


def _count_non_finite(x: Tensor) -> int:
    return int((~x.isfinite()).sum())


class HungarianMatcher:
    """One-to-one matching with the lowest total cost of classes, cross entropy and dice.

    Args:
        class_weight: weight of the negative probability of the true class.
        mask_weight: weight of the mean binary cross entropy between masks.
        dice_weight: weight of one minus the masks' dice coefficient.
        num_points: number of points at which masks are compared; all pairs have the same points.
        random_points: draws the points.

    Raises:
        ValueError: there is no point, a weight is negative, or all weights are zero.
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
            classes: (N,), of the true segments; N may be 0, or more than Q.
            masks: (N, H, W), floating point.

        Returns:
            Indices (M,) of queries and (M,) of their segments, with M = min(Q, N). If N > Q, the
            segments that fit worst have no query.

        Raises:
            FloatingPointError: a cost is not finite, because a prediction is not.
        """
        costs = self.costs(class_logits, mask_logits, classes, masks).cpu()
        if not costs.isfinite().all():
            raise FloatingPointError(
                "matching needs finite costs, but "
                f"{_count_non_finite(class_logits)} class logits and "
                f"{_count_non_finite(mask_logits)} mask logits are NaN or infinite: the training "
                "has diverged, or half precision overflowed; try a lower learning rate, gradient "
                "clipping or bfloat16"
            )
        rows, columns = linear_sum_assignment(costs.numpy())
        device = class_logits.device
        return torch.as_tensor(rows, device=device), torch.as_tensor(columns, device=device)

    def costs(
        self, class_logits: Tensor, mask_logits: Tensor, classes: Tensor, masks: Tensor
    ) -> Tensor:
        """Computes the costs (Q, N) of all pairs; the arguments are those of a call."""
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


class SetCriterion(nn.Module):
    """Matches every layer's predictions with the ground truth and compares matched pairs.

    Weights and points of the losses are those of the matcher. Everything is computed in float32 at
    least, whatever the dtype of the predictions.

    Args:
        num_classes: number of classes K, without "no object".
        matcher: matches queries with true segments.
        no_object_weight: weight of queries without a match in the classes' cross entropy.
        oversample_ratio, importance_sample_ratio: see `uncertain_points`.

    Raises:
        ValueError: a ratio is out of range.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        no_object_weight: float = 0.1,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        if not (oversample_ratio >= 1 and 0 <= importance_sample_ratio <= 1):
            raise ValueError(
                "oversample_ratio must be at least 1 and importance_sample_ratio lie in [0, 1], "
                f"got {oversample_ratio=}, {importance_sample_ratio=}"
            )
        self.num_classes = num_classes
        self.matcher = matcher
        self.no_object_weight = no_object_weight
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio

    def forward(
        self, predictions: Sequence[MaskPrediction], targets: Sequence[MaskTargets]
    ) -> dict[str, Tensor]:
        """
        Args:
            predictions: those of the decoder's layers, the final one last.
            targets: ground truth of each image, with masks at the size of the padded batch.

        Returns:
            Weighted losses "loss_ce", "loss_mask" and "loss_dice" of the final prediction. The
            names
            of the others end in the number of their layer: "loss_ce_0" and so on. If there is no
            true segment, the losses of masks are 0.

        Raises:
            FloatingPointError: a prediction is not finite.
        """
        dtype = torch.promote_types(predictions[-1].mask_logits.dtype, torch.float32)
        targets = [MaskTargets(x.classes, x.masks.to(dtype)) for x in targets]
        num_queries = predictions[-1].class_logits.shape[1]
        matched = sum(min(len(x.classes), num_queries) for x in targets)
        num_pairs = mean_over_processes(
            predictions[-1].mask_logits.new_tensor(matched, dtype=dtype)
        ).clamp(min=1)
        losses: dict[str, Tensor] = {}
        with torch.autocast(predictions[-1].mask_logits.device.type, enabled=False):
            for i, prediction in enumerate(predictions):
                suffix = "" if i == len(predictions) - 1 else f"_{i}"
                layer_losses = self._losses(
                    prediction.class_logits.to(dtype),
                    prediction.mask_logits.to(dtype),
                    targets,
                    num_pairs,
                )
                losses |= {f"{name}{suffix}": loss for name, loss in layer_losses.items()}
        return losses

    def _losses(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        targets: Sequence[MaskTargets],
        num_pairs: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of class logits (B, Q, K + 1) and mask logits (B, Q, h, w) of one layer."""
        labels = torch.full(class_logits.shape[:2], self.num_classes, device=class_logits.device)
        matched_logits, matched_masks = [], []
        for i, target in enumerate(targets):
            queries, segments = self.matcher(class_logits[i], mask_logits[i], *target)
            labels[i, queries] = target.classes[segments]
            matched_logits.append(mask_logits[i, queries])
            matched_masks.append(target.masks[segments])
        weights = class_logits.new_ones(self.num_classes + 1)
        weights[-1] = self.no_object_weight
        loss_ce = F.cross_entropy(class_logits.flatten(0, 1), labels.flatten(), weights)
        loss_mask, loss_dice = self._mask_losses(
            torch.cat(matched_logits), torch.cat(matched_masks)
        )
        return {
            "loss_ce": self.matcher.class_weight * loss_ce,
            "loss_mask": self.matcher.mask_weight * loss_mask / num_pairs,
            "loss_dice": self.matcher.dice_weight * loss_dice / num_pairs,
        }

    def _mask_losses(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Sums cross entropy and dice loss over M matched masks, (M, h, w) and (M, H, W)."""
        if len(logits) == 0:
            # This is 0, but belongs to the graph, so that parameters have gradients.
            return logits.sum(), logits.sum()
        with torch.no_grad():
            points = uncertain_points(
                logits,
                num_points=self.matcher.num_points,
                oversample_ratio=self.oversample_ratio,
                importance_sample_ratio=self.importance_sample_ratio,
                random_points=self.matcher.random_points,
            )
            truth = sample_at_points(masks, points)
        logits = sample_at_points(logits, points)  # (M, P)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return cross_entropy.mean(-1).sum(), dice_loss(logits, truth).sum()
