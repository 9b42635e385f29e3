"""Matching and losses of Sparse R-CNN against formulas, torchvision and scipy."""

import itertools

import pytest
import torch
import torchvision
from detectron2.structures import Boxes, Instances
from torch import Tensor

from vitadapter.modeling.sparse_rcnn import HungarianMatcher, SetCriterion

HEIGHT, WIDTH = 80, 120


def _objects(boxes: list[list[float]], classes: list[int]) -> Instances:
    instances = Instances((HEIGHT, WIDTH))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.long)
    return instances


TWO = _objects([[10.0, 10.0, 60.0, 50.0], [50.0, 20.0, 110.0, 75.0]], [0, 2])


def _predictions(seed: int, number: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, 2, generator=generator) * 60
    size = 5 + torch.rand(number, 2, generator=generator) * 60
    logits = torch.randn(number, classes, generator=generator) * 2
    return logits, torch.cat([corner, corner + size], 1)


def _cost(logits: Tensor, boxes: Tensor, proposal: int, target: int) -> float:
    """The three costs of one pair, written out."""
    p = logits[proposal, int(TWO.gt_classes[target])].sigmoid()
    yes, no = -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()
    box, gt = boxes[proposal], TWO.gt_boxes.tensor[target]
    scale = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    giou = torchvision.ops.generalized_box_iou(box[None], gt[None])[0, 0]
    return float(2 * (yes - no) + 5 * ((box - gt) / scale).abs().sum() - 2 * giou)


@pytest.mark.parametrize("seed", range(5))
def test_the_matching_is_the_cheapest_of_all(seed: int) -> None:
    logits, boxes = _predictions(seed)
    rows, columns = HungarianMatcher()(logits, boxes, TWO)
    matched = dict(zip(columns.tolist(), rows.tolist(), strict=True))
    cheapest = min(
        itertools.permutations(range(6), 2),
        key=lambda pair: _cost(logits, boxes, pair[0], 0) + _cost(logits, boxes, pair[1], 1),
    )
    assert (matched[0], matched[1]) == cheapest


def test_losses_are_those_of_the_matched_pairs() -> None:
    logits, boxes = _predictions(0)
    rows, columns = HungarianMatcher()(logits, boxes, TWO)
    losses = SetCriterion(HungarianMatcher())(logits[None], boxes[None], [TWO])
    labels = torch.zeros_like(logits)
    labels[rows, TWO.gt_classes[columns]] = 1
    focal = torchvision.ops.sigmoid_focal_loss(logits, labels, 0.25, 2.0, "sum")
    scale = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    matched, gt = boxes[rows], TWO.gt_boxes.tensor[columns]
    giou = torchvision.ops.generalized_box_iou(matched, gt).diagonal()
    assert losses["loss_cls"].item() == pytest.approx(2 * focal.item() / 2, rel=1e-5)
    distance = ((matched - gt) / scale).abs().sum().item()
    assert losses["loss_box_reg"].item() == pytest.approx(5 * distance / 2, rel=1e-5)
    assert losses["loss_giou"].item() == pytest.approx(2 * (1 - giou).sum().item() / 2, rel=1e-5)


def test_perfect_predictions_cost_nothing() -> None:
    logits = torch.full((1, 2, 4), -20.0)
    logits[0, 0, 2] = logits[0, 1, 0] = 20.0
    losses = SetCriterion(HungarianMatcher())(logits, TWO.gt_boxes.tensor[[1, 0]][None], [TWO])
    assert sum(loss.item() for loss in losses.values()) == pytest.approx(0, abs=1e-5)


def test_an_image_without_objects() -> None:
    logits, boxes = _predictions(1)
    logits.requires_grad_()
    boxes.requires_grad_()
    losses = SetCriterion(HungarianMatcher())(logits[None], boxes[None], [_objects([], [])])
    assert losses["loss_box_reg"] == losses["loss_giou"] == 0
    assert losses["loss_cls"] > 0
    sum(losses.values()).backward()
    assert boxes.grad.abs().sum() == 0  # there, which is what distributed training needs
    assert logits.grad.abs().sum() > 0


def test_more_objects_than_proposals() -> None:
    logits, boxes = _predictions(2, number=1)
    rows, columns = HungarianMatcher()(logits, boxes, TWO)
    assert rows.tolist() == [0]
    assert len(columns) == 1


def test_a_prediction_that_is_not_finite_reaches_the_loss() -> None:
    """Instead of an error from scipy, which would not name the images."""
    logits, boxes = _predictions(3)
    boxes[2] = float("nan")
    logits[4] = float("inf")
    losses = SetCriterion(HungarianMatcher())(logits[None], boxes[None], [TWO])
    assert not sum(losses.values()).isfinite()
