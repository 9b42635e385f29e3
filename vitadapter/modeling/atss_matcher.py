"""Adaptive Training Sample Selection (arXiv 1912.02424): which anchors learn which object."""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor

__all__ = ["ATSSMatcher"]

_MIN_INSIDE = 0.01  # pixels; from the official release, the paper says "inside"


class ATSSMatcher:
    """Assigns anchors to ground-truth boxes by statistics of each box's own surroundings.

    Of every level the `topk` anchors with the nearest centres are candidates of a box. Those with
    an IoU of at least the candidates' mean plus standard deviation, and with their centre inside
    the box, are its positives (paper algorithm 1). An anchor that several boxes want goes to the
    one of highest IoU.
    """

    def __init__(self, topk: int = 9) -> None:
        """
        Args:
            topk: candidates per box and level; default from the paper.

        Raises:
            ValueError: it is not positive.
        """
        if topk < 1:
            raise ValueError(f"topk must be at least 1, got {topk}")
        self.topk = topk

    @torch.no_grad()
    def __call__(self, anchors: Sequence[Boxes], gt_boxes: Boxes) -> Tensor:
        """
        Args:
            anchors: per level, (R_l, 4) in pixels.
            gt_boxes: M boxes of one image.

        Returns:
            Tensor: (R,) index of the ground-truth box for the anchors of all levels, -1 for
            background.
        """
        all_anchors = Boxes.cat(list(anchors))
        number, device = len(all_anchors), all_anchors.device
        if number == 0 or len(gt_boxes) == 0:
            return torch.full((number,), -1, device=device)
        candidates = self._candidates(anchors, gt_boxes)  # (C, M)
        ious = _ious(all_anchors, gt_boxes, candidates)  # (C, M)
        # One candidate has no deviation.
        std = ious.std(0) if len(candidates) > 1 else 0.0
        centers, boxes = all_anchors.get_centers()[candidates], gt_boxes.tensor  # (C, M, 2), (M, 4)
        sides = torch.cat([centers - boxes[:, :2], boxes[:, 2:] - centers], dim=2)  # (C, M, 4)
        positive = (ious >= ious.mean(0) + std) & (sides.amin(dim=2) > _MIN_INSIDE)
        ious = torch.where(positive, ious, -1.0)
        best = ious.new_full((number,), -1.0)
        best = best.scatter_reduce(0, candidates.flatten(), ious.flatten(), "amax")
        # Of boxes that overlap an anchor equally, the first gets it.
        wins = positive & (ious == best[candidates])  # (C, M)
        index = torch.arange(len(gt_boxes), device=device).expand_as(candidates)
        matched = torch.full((number,), len(gt_boxes), device=device)
        matched = matched.scatter_reduce(0, candidates[wins], index[wins], "amin")
        return torch.where(matched < len(gt_boxes), matched, -1)

    def _candidates(self, anchors: Sequence[Boxes], gt_boxes: Boxes) -> Tensor:
        """(C, M) indexes, among the anchors of all levels, of each box's candidates."""
        gt_centers = gt_boxes.get_centers()
        candidates, start = [], 0
        for level in anchors:
            distances = torch.cdist(
                level.get_centers(),
                gt_centers,
                compute_mode="donot_use_mm_for_euclid_dist",  # which rounds away pixels
            )
            nearest = distances.topk(min(self.topk, len(level)), dim=0, largest=False).indices
            candidates.append(nearest + start)
            start += len(level)
        return torch.cat(candidates)


def _ious(anchors: Boxes, gt_boxes: Boxes, candidates: Tensor) -> Tensor:
    """(C, M) of each box with its candidates: all pairs would be a thousand times as many."""
    boxes = Boxes(gt_boxes.tensor.repeat(len(candidates), 1))  # (C * M, 4)
    return matched_pairwise_iou(anchors[candidates.flatten()], boxes).view_as(candidates)
