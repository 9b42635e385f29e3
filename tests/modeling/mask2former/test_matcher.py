"""Costs against plain loops, matching against all permutations."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitadapter.modeling.mask2former import HungarianMatcher
from vitadapter.modeling.mask2former.criterion import dice_loss, sample_at_points

QUERIES, CLASSES, POINTS = 5, 3, 40


def points(num_masks: int, num_points: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(num_points)
    return torch.rand(1, num_points, 2, generator=generator).expand(num_masks, -1, -1)


def sample(num_segments: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(QUERIES, CLASSES + 1, generator=generator),
        3 * torch.randn(QUERIES, 6, 7, generator=generator),
        torch.randint(0, CLASSES, (num_segments,), generator=generator),
        (torch.rand(num_segments, 12, 14, generator=generator) > 0.5).float(),
    )


def test_costs_are_the_weighted_sum() -> None:
    matcher = HungarianMatcher(
        class_weight=2.0, mask_weight=3.0, dice_weight=4.0, num_points=POINTS, random_points=points
    )
    class_logits, mask_logits, classes, masks = sample(3)
    costs = matcher.costs(class_logits, mask_logits, classes, masks)
    where = points(1, POINTS, costs.device)
    logits, truth = sample_at_points(mask_logits, where), sample_at_points(masks, where)
    for q, n in itertools.product(range(QUERIES), range(3)):
        expected = (
            -2 * class_logits[q].softmax(0)[classes[n]]
            + 3 * F.binary_cross_entropy_with_logits(logits[q], truth[n])
            + 4 * dice_loss(logits[q][None], truth[n][None])[0]
        )
        torch.testing.assert_close(costs[q, n], expected)


@pytest.mark.parametrize("num_segments", [0, 1, 3, QUERIES, 7])
def test_no_other_matching_costs_less(num_segments: int) -> None:
    matcher = HungarianMatcher(num_points=POINTS, random_points=points)
    arguments = sample(num_segments)
    queries, segments = matcher(*arguments)
    matched = min(QUERIES, num_segments)
    assert len(set(queries.tolist())) == len(set(segments.tolist())) == matched
    costs = matcher.costs(*arguments)
    if num_segments > QUERIES:
        costs = costs.T
    best = min(
        sum(costs[row, column] for column, row in enumerate(rows))
        for rows in itertools.permutations(range(len(costs)), costs.shape[1])
    )
    total = matcher.costs(*arguments)[queries, segments].sum()
    torch.testing.assert_close(total, torch.as_tensor(best, dtype=total.dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_predictions_that_are_not_finite(value: float) -> None:
    class_logits, mask_logits, classes, masks = sample(2)
    mask_logits[1] = value
    matcher = HungarianMatcher(num_points=POINTS, random_points=points)
    with pytest.raises(FloatingPointError, match="0 class logits and 42 mask logits are NaN"):
        matcher(class_logits, mask_logits, classes, masks)


def test_arguments() -> None:
    for arguments in (
        {"num_points": 0},
        {"class_weight": -1.0},
        {"class_weight": 0.0, "mask_weight": 0.0, "dice_weight": 0.0},
    ):
        with pytest.raises(ValueError, match="must not be negative nor all zero"):
            HungarianMatcher(**arguments)
