"""Soft-NMS (arXiv 1704.04503): overlapping boxes lose score instead of being dropped."""

from collections.abc import Callable

import torch
from torch import Tensor

from vitadapter.layers.nms import check_detections

__all__ = ["GaussianDecay", "LinearDecay", "SoftNMS"]


class LinearDecay:
    """The factor `1 - iou` from `iou_threshold` upwards, and 1 below (the paper's first form).

    Args:
        iou_threshold: IoU from which a box loses score.

    Raises:
        ValueError: `iou_threshold` is not in [0, 1].
    """

    def __init__(self, iou_threshold: float = 0.5) -> None:
        if not 0 <= iou_threshold <= 1:
            raise ValueError(f"iou_threshold must be in [0, 1], got {iou_threshold}")
        self.iou_threshold = iou_threshold

    def __call__(self, iou: Tensor) -> Tensor:
        """Returns factors with the shape of `iou`."""
        return torch.where(iou >= self.iou_threshold, 1 - iou, 1.0)


class GaussianDecay:
    """The factor `exp(-iou ** 2 / sigma)`, which is continuous (the paper's second form).

    Args:
        sigma: the larger it is, the weaker is the effect.

    Raises:
        ValueError: `sigma` is not positive.
    """

    def __init__(self, sigma: float = 0.5) -> None:
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma}")
        self.sigma = sigma

    def __call__(self, iou: Tensor) -> Tensor:
        """Returns factors with the shape of `iou`."""
        return torch.exp(-iou.square() / self.sigma)


class SoftNMS:
    """An `NMS` that lowers the scores of overlapping boxes.

    The best box of a class is kept, and the scores of the others are multiplied by a factor that
    depends on their IoU with it. The best of these is kept next, and so on. All classes take their
    steps at the same time, and the search ends after `max_output` steps: scores only fall, so the
    result is the same.

    Args:
        decay: maps IoUs to factors in [0, 1]; None for `LinearDecay`.
        min_score: boxes whose score is lower, or becomes lower, are dropped.

    Raises:
        ValueError: `min_score` is not positive, so that no box could ever be dropped.
    """

    def __init__(
        self, decay: Callable[[Tensor], Tensor] | None = None, min_score: float = 1e-3
    ) -> None:
        if not min_score > 0:
            raise ValueError(f"min_score must be positive, got {min_score}")
        self.decay = LinearDecay() if decay is None else decay
        self.min_score = min_score

    def __call__(
        self, boxes: Tensor, scores: Tensor, idxs: Tensor, max_output: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `NMS`."""
        check_detections(boxes, scores, idxs, max_output)
        candidates = (scores >= self.min_score).nonzero().squeeze(1)
        if len(candidates) == 0:
            return candidates, scores[candidates]
        rows = _rows_by_class(idxs[candidates])  # (C, M)
        absent = rows < 0
        rows = candidates[rows.clamp(min=0)]
        places, picked = self._pick(
            boxes[rows].float(), scores[rows].float().masked_fill(absent, 0), max_output
        )
        keep = rows.gather(1, places)[picked > 0]
        picked, order = picked[picked > 0].sort(descending=True, stable=True)
        return keep[order][:max_output], picked[:max_output].to(scores.dtype)

    def _pick(self, boxes: Tensor, scores: Tensor, max_output: int | None) -> tuple[Tensor, Tensor]:
        """Returns places (C, S) and scores (C, S) of the boxes picked by each class, in this order.

        Args:
            boxes: (C, M, 4).
            scores: (C, M), 0 where there is no box. In the result, 0 where no box was left to pick.
            max_output: upper limit of S; None for M.
        """
        areas = _area(boxes)
        steps = scores.shape[1] if max_output is None else min(max_output, scores.shape[1])
        places = torch.zeros_like(scores[:, :steps], dtype=torch.long)
        picked = torch.zeros_like(scores[:, :steps])
        for step in range(steps):
            best, place = scores.max(dim=1, keepdim=True)  # (C, 1)
            places[:, step : step + 1], picked[:, step : step + 1] = place, best
            box = boxes.gather(1, place[:, :, None].expand(-1, -1, 4))  # (C, 1, 4)
            iou = _iou(boxes, areas, box, areas.gather(1, place))
            scores = scores * self.decay(iou)
            # The picked box leaves the competition, and so do those whose score is now too low.
            scores = scores.masked_fill(scores < self.min_score, 0).scatter(1, place, 0.0)
        return places, picked


def _rows_by_class(idxs: Tensor) -> Tensor:
    """Returns the positions (C, M) of each class in `idxs`; -1 where a class has fewer than M."""
    _, classes, counts = idxs.unique(return_inverse=True, return_counts=True)
    order = classes.argsort(stable=True)
    firsts = counts.cumsum(0) - counts
    classes = classes[order]
    columns = torch.arange(len(idxs), device=idxs.device) - firsts[classes]
    rows = torch.full((len(counts), int(counts.max())), -1, device=idxs.device)
    rows[classes, columns] = order
    return rows


def _area(boxes: Tensor) -> Tensor:
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    return width * height


def _iou(boxes: Tensor, areas: Tensor, others: Tensor, other_areas: Tensor) -> Tensor:
    """Returns the IoU of boxes (..., 4) that broadcast; 0 where neither has an area."""
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    common = width * height
    union = areas + other_areas - common
    return torch.where(union > 0, common / union, 0.0)
