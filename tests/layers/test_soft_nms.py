"""Soft-NMS and its hard twin against plain loops over boxes."""

import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitadapter.layers.nms import HardNMS
from vitadapter.layers.soft_nms import GaussianDecay, LinearDecay, SoftNMS

DECAYS = {
    "linear": (LinearDecay(0.5), lambda iou: 1 - iou if iou >= 0.5 else 1.0),
    "linear_0.3": (LinearDecay(0.3), lambda iou: 1 - iou if iou >= 0.3 else 1.0),
    "gaussian": (GaussianDecay(0.5), lambda iou: math.exp(-iou * iou / 0.5)),
    "gaussian_0.1": (GaussianDecay(0.1), lambda iou: math.exp(-iou * iou / 0.1)),
}
each_decay = pytest.mark.parametrize("name", list(DECAYS))


def _plain_soft_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, factor: object, min_score: float
) -> list[tuple[int, float]]:
    """Figure 2 of the paper, one box at a time over all classes; torchvision gives the IoU."""
    ious = torchvision.ops.box_iou(boxes.double(), boxes.double()).tolist()
    left = {i: s for i, s in enumerate(scores.tolist()) if s >= min_score}
    kept = []
    while left:
        best = max(left, key=left.get)
        kept.append((best, left.pop(best)))
        for i in list(left):
            if idxs[i] == idxs[best]:
                left[i] *= factor(ious[best][i])
                if left[i] < min_score:
                    del left[i]
    return kept


def _detections(seed: int, number: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, 2, generator=generator) * 60
    size = 20 + torch.rand(number, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + size], dim=1)
    # Distinct, so that the order of equals does not matter.
    scores = (torch.randperm(number, generator=generator) + 1.0) / (number + 1)
    return boxes, scores, torch.randint(classes, (number,), generator=generator)


@each_decay
@pytest.mark.parametrize(("number", "classes"), [(1, 1), (40, 1), (200, 5), (150, 80)])
@pytest.mark.parametrize("min_score", [1e-3, 0.05])
def test_equals_a_plain_loop(name: str, number: int, classes: int, min_score: float) -> None:
    decay, factor = DECAYS[name]
    boxes, scores, idxs = _detections(number, number, classes)
    expected = _plain_soft_nms(boxes, scores, idxs, factor, min_score)
    keep, lowered = SoftNMS(decay, min_score)(boxes, scores, idxs)
    assert keep.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(lowered, torch.tensor([s for _, s in expected]), rtol=1e-5, atol=0)
    assert (lowered <= scores[keep]).all()
    if number == 200:
        assert (lowered < scores[keep]).any()  # something was lowered
        assert min_score < 0.05 or len(keep) < number  # something was dropped


@each_decay
@pytest.mark.parametrize("max_output", [0, 1, 7, 1000])
def test_the_best_are_the_same_with_fewer_steps(name: str, max_output: int) -> None:
    nms = SoftNMS(DECAYS[name][0])
    detections = _detections(3, 120, 4)
    keep, scores = nms(*detections)
    best, best_scores = nms(*detections, max_output=max_output)
    assert best.tolist() == keep[:max_output].tolist()
    assert torch.equal(best_scores, scores[:max_output])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 4), st.sampled_from([*DECAYS]))
def test_any_input_equals_a_plain_loop(seed: int, number: int, classes: int, name: str) -> None:
    decay, factor = DECAYS[name]
    boxes, scores, idxs = _detections(seed, number, classes)
    expected = _plain_soft_nms(boxes, scores, idxs, factor, 0.01)
    keep, lowered = SoftNMS(decay, 0.01)(boxes, scores, idxs)
    reference = dict(expected)
    # Within rounding two boxes may change places or fall on the other side of the limit.
    for i in set(keep.tolist()) ^ set(reference):
        assert reference.get(i, 0.01) == pytest.approx(0.01, rel=1e-4)
    for i, score in zip(keep.tolist(), lowered.tolist(), strict=True):
        assert score == pytest.approx(reference.get(i, 0.01), rel=1e-4)
    assert (lowered[:-1] >= lowered[1:]).all()


def test_classes_do_not_touch_each_other() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(4, 1)
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    keep, lowered = SoftNMS(GaussianDecay())(boxes, scores, torch.tensor([7, 3, 7, 3]))
    assert keep.tolist() == [0, 1, 2, 3]
    factor = math.exp(-2)
    expected = torch.tensor([0.9, 0.8, 0.7 * factor, 0.6 * factor])
    torch.testing.assert_close(lowered, expected)


def test_a_duplicate_vanishes_under_linear_decay() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(2, 1)
    keep, _ = SoftNMS()(boxes, torch.tensor([0.5, 0.9]), torch.tensor([0, 0]))
    assert keep.tolist() == [1]


def test_boxes_without_area_suppress_nothing() -> None:
    boxes = torch.tensor([[5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0], [0.0, 5.0, 9.0, 5.0]])
    keep, scores = SoftNMS()(boxes, torch.tensor([0.5, 0.6, 0.7]), torch.zeros(3).long())
    assert keep.tolist() == [2, 1, 0]
    assert scores.tolist() == pytest.approx([0.7, 0.6, 0.5])


@pytest.mark.parametrize("nms", [SoftNMS(), HardNMS()])
def test_nothing_in_nothing_out(nms: object) -> None:
    keep, scores = nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    assert keep.shape == scores.shape == (0,)
    assert keep.dtype == torch.long


def test_all_below_the_minimum() -> None:
    boxes, _, idxs = _detections(0, 5, 2)
    keep, scores = SoftNMS(min_score=0.01)(boxes, torch.full((5,), 0.001), idxs)
    assert len(keep) == len(scores) == 0


def test_half_precision_scores_keep_their_type() -> None:
    boxes, scores, idxs = _detections(0, 50, 3)
    _, lowered = SoftNMS()(boxes, scores.to(torch.float16), idxs)
    assert lowered.dtype == torch.float16


def test_hard_nms_is_torchvision_by_class() -> None:
    boxes, scores, idxs = _detections(5, 200, 6)
    keep, kept_scores = HardNMS(0.6)(boxes, scores, idxs, max_output=50)
    alone = [
        (idxs == c).nonzero()[:, 0][torchvision.ops.nms(boxes[idxs == c], scores[idxs == c], 0.6)]
        for c in range(6)
    ]
    expected = torch.cat(alone)
    expected = expected[scores[expected].argsort(descending=True)][:50]
    assert keep.tolist() == expected.tolist()
    assert torch.equal(kept_scores, scores[keep])


@pytest.mark.parametrize("nms", [SoftNMS(), HardNMS()])
def test_wrong_shapes_are_refused(nms: object) -> None:
    boxes, scores, idxs = _detections(0, 5, 2)
    with pytest.raises(ValueError, match=r"boxes \(N, 4\).*got \(5, 4\), \(4,\) and \(5,\)"):
        nms(boxes, scores[:4], idxs)
    with pytest.raises(ValueError, match="max_output must not be negative, got -1"):
        nms(boxes, scores, idxs, max_output=-1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearDecay(1.5), r"iou_threshold must be in \[0, 1\], got 1.5"),
        (lambda: HardNMS(-0.1), r"iou_threshold must be in \[0, 1\], got -0.1"),
        (lambda: GaussianDecay(0.0), "sigma must be positive, got 0.0"),
        (lambda: GaussianDecay(float("nan")), "sigma must be positive, got nan"),
        (lambda: SoftNMS(min_score=float("nan")), "min_score must be positive, got nan"),
        (lambda: SoftNMS(min_score=0.0), "min_score must be positive, got 0.0"),
    ],
)
def test_wrong_settings_are_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
