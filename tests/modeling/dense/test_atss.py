"""ATSS on cases worked out by hand, and what real annotations contain."""

import pytest
import torch
from detectron2.structures import Boxes
from torch import Tensor

from vitadapter.modeling.dense import ATSSMatcher


def _grid(stride: int, size: int, side: int) -> Boxes:
    """Square anchors of `side` pixels at (i * stride, j * stride)."""
    y, x = torch.meshgrid(
        torch.arange(0, size, stride), torch.arange(0, size, stride), indexing="ij"
    )
    centers = torch.stack([x, y], -1).reshape(-1, 2).float()
    return Boxes(torch.cat([centers - side / 2, centers + side / 2], 1))


ANCHORS = [_grid(8, 64, 64), _grid(16, 64, 128), _grid(32, 64, 256)]
NUMBER = sum(map(len, ANCHORS))


def _plain(anchors: list[Boxes], gt: Tensor, topk: int) -> list[int]:
    """Algorithm 1 of the paper, box by box and anchor by anchor."""
    every = torch.cat([level.tensor for level in anchors]).double()
    gt = gt.double()

    def iou(a: Tensor, b: Tensor) -> float:
        low, high = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])
        common = float((high - low).clamp(min=0).prod())
        return common / float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common)

    result, quality = [-1] * len(every), [-1.0] * len(every)
    for g, box in enumerate(gt):
        center, candidates, start = (box[:2] + box[2:]) / 2, [], 0
        for level in anchors:
            rows = range(start, start + len(level))
            distance = [float(((every[r, :2] + every[r, 2:]) / 2 - center).norm()) for r in rows]
            order = sorted(rows, key=lambda r, d=distance, s=start: d[r - s])
            candidates += order[:topk]
            start += len(level)
        ious = torch.tensor([iou(every[r], box) for r in candidates])
        threshold = ious.mean() + ious.std()
        for r, value in zip(candidates, ious.tolist(), strict=True):
            x, y = ((every[r, :2] + every[r, 2:]) / 2).tolist()
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if value >= threshold and inside and value > quality[r]:
                result[r], quality[r] = g, value
    return result


@pytest.mark.parametrize("topk", [1, 4, 9])
def test_equals_the_paper_s_algorithm(topk: int) -> None:
    generator = torch.Generator().manual_seed(topk)
    for _ in range(5):
        corner = torch.rand(6, 2, generator=generator) * 40
        # No two anchors are equally near.
        gt = torch.cat([corner, corner + 5 + torch.rand(6, 2, generator=generator) * 40], 1)
        matched = ATSSMatcher(topk)(ANCHORS, Boxes(gt))
        assert matched.tolist() == _plain(ANCHORS, gt, topk)
        assert (matched >= 0).any()


def test_no_object() -> None:
    assert ATSSMatcher()(ANCHORS, Boxes(torch.zeros(0, 4))).tolist() == [-1] * NUMBER


def test_a_level_with_fewer_anchors_than_candidates() -> None:
    anchors = [_grid(64, 64, 64)]
    assert len(anchors[0]) == 1
    matched = ATSSMatcher(topk=9)(anchors, Boxes(torch.tensor([[-20.0, -20.0, 30.0, 30.0]])))
    assert matched.tolist() == [0]


def test_a_box_between_all_centres_has_no_positive() -> None:
    one_pixel = Boxes(torch.tensor([[3.0, 3.0, 4.0, 4.0]]))
    assert (ATSSMatcher()(ANCHORS, one_pixel) == -1).all()


def test_no_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="topk must be at least 1, got 0"):
        ATSSMatcher(topk=0)
