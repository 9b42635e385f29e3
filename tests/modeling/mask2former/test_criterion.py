"""Losses and matching beyond the golden file: against Detectron2, torch and plain loops."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor

from vitadapter.modeling.mask2former import (
    HungarianMatcher,
    MaskPrediction,
    MaskTargets,
    SetCriterion,
)
from vitadapter.modeling.mask2former.criterion import (
    dice_loss,
    sample_at_points,
    uncertain_points,
    uniform_points,
)


@pytest.mark.parametrize("shared_points", [True, False])
def test_points_are_sampled_as_detectron2_does(shared_points: bool) -> None:
    torch.manual_seed(0)
    masks = torch.randn(3, 8, 10)
    points = torch.rand(1 if shared_points else 3, 20, 2) * 1.2 - 0.1  # some outside
    expected = point_sample(masks[:, None], points.expand(3, -1, -1), align_corners=False)[:, 0]
    torch.testing.assert_close(sample_at_points(masks, points), expected)


def test_uncertain_points_lie_where_the_logit_is_near_zero() -> None:
    torch.manual_seed(0)
    # The logit is 0 along the middle column.
    logits = torch.linspace(-10, 10, 101).expand(2, 5, -1)
    points = uncertain_points(
        logits,
        num_points=100,
        oversample_ratio=8.0,
        importance_sample_ratio=0.75,
        random_points=uniform_points,
    )
    assert points.shape == (2, 100, 2)
    distance = (points[..., 0] - 0.5).abs()
    assert distance[:, :75].max() < 0.1
    assert distance[:, 75:].max() > 0.3
    assert points.min() >= 0
    assert points.max() <= 1


def test_dice_loss() -> None:
    truth = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert dice_loss(torch.where(truth > 0, 50.0, -50.0), truth).item() == pytest.approx(0)
    # 2 * 0 + 1 over 2 + 2 + 1
    assert dice_loss(torch.where(truth > 0, -50.0, 50.0), truth).item() == pytest.approx(0.8)


def _prediction(matched: bool) -> tuple[MaskPrediction, MaskTargets]:
    """Two queries; the first says class 1 on the left half."""
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[:, :, :8] = True
    mask_logits = torch.stack([masks[0] * 2.0 - 1, 1 - masks[0] * 2.0])[None] * 40
    class_logits = torch.zeros(1, 2, 4)
    class_logits[0, 0, 1] = class_logits[0, 1, 3] = 40
    classes = torch.tensor([1 if matched else 0])
    return MaskPrediction(class_logits, mask_logits), MaskTargets(classes, masks)


def make_criterion(matcher: HungarianMatcher | None = None, **arguments: float) -> SetCriterion:
    matcher = HungarianMatcher(num_points=32) if matcher is None else matcher
    return SetCriterion(num_classes=3, matcher=matcher, **arguments)


def test_a_perfect_prediction_costs_next_to_nothing() -> None:
    """Next to: on the edge of the mask a point's truth lies between 0 and 1."""
    torch.manual_seed(0)
    prediction, targets = _prediction(matched=True)
    criterion = make_criterion(importance_sample_ratio=0.0)
    losses = criterion([prediction], [targets])
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice"}
    assert losses["loss_ce"].item() == pytest.approx(0, abs=1e-5)
    assert losses["loss_dice"].item() < 0.3
    nowhere = prediction._replace(mask_logits=-prediction.mask_logits.abs())
    assert criterion([nowhere], [targets])["loss_dice"].item() > 4


def test_class_loss_weighs_no_object() -> None:
    prediction, targets = _prediction(matched=False)
    losses = make_criterion(no_object_weight=0.25)([prediction], [targets])
    weights = torch.tensor([1.0, 1.0, 1.0, 0.25])
    labels = torch.tensor([0, 3])
    expected = 2 * F.cross_entropy(prediction.class_logits[0], labels, weights)
    torch.testing.assert_close(losses["loss_ce"], expected)


def test_losses_of_masks_are_averaged_over_the_batch() -> None:
    """Two equal images, the second without truth: as one image."""
    torch.manual_seed(0)
    prediction, targets = _prediction(matched=True)
    nothing = MaskTargets(targets.classes[:0], targets.masks[:0])

    def first_points(num_masks: int, num_points: int, device: torch.device) -> Tensor:
        generator = torch.Generator().manual_seed(num_points)
        return torch.rand(1, num_points, 2, generator=generator).expand(num_masks, -1, -1)

    criterion = make_criterion(HungarianMatcher(num_points=32, random_points=first_points))
    alone = criterion([prediction], [targets])
    twice = MaskPrediction(*(x.repeat(2, *[1] * (x.ndim - 1)) for x in prediction))
    together = criterion([twice], [targets, nothing])
    for name in ("loss_mask", "loss_dice"):
        torch.testing.assert_close(together[name], alone[name])


def test_segments_beyond_the_queries_do_not_count() -> None:
    """As officially: losses are divided by the matched pairs, not by the true segments."""
    torch.manual_seed(0)
    prediction, targets = _prediction(matched=True)
    prediction = MaskPrediction(prediction.class_logits[:, :1], prediction.mask_logits[:, :1] * 0)
    several = MaskTargets(targets.classes.repeat(3), targets.masks.repeat(3, 1, 1))
    # Logits of 0 cost log(2) at every point.
    for truth in (targets, several):
        losses = make_criterion(HungarianMatcher(num_points=32, mask_weight=1.0))(
            [prediction], [truth]
        )
        torch.testing.assert_close(losses["loss_mask"], torch.tensor(2.0).log())


@pytest.mark.parametrize("arguments", [{"oversample_ratio": 0.5}, {"importance_sample_ratio": 1.5}])
def test_arguments(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be at least 1 and importance_sample_ratio"):
        make_criterion(**arguments)


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


def test_arguments_of_the_matcher() -> None:
    for arguments in (
        {"num_points": 0},
        {"class_weight": -1.0},
        {"class_weight": 0.0, "mask_weight": 0.0, "dice_weight": 0.0},
    ):
        with pytest.raises(ValueError, match="must not be negative nor all zero"):
            HungarianMatcher(**arguments)
