"""Adaptive Training Sample Selection (arXiv 1912.02424): which anchors learn which object."""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, pairwise_iou, pairwise_point_box_distance
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
        ious = pairwise_iou(all_anchors, gt_boxes)  # (R, M)
        if ious.numel() == 0:
            return torch.full((len(all_anchors),), -1, device=ious.device)
        candidates = self._candidates(anchors, gt_boxes)  # (C, M)
        candidate_ious = ious.gather(0, candidates)
        # One candidate has no deviation.
        std = candidate_ious.std(0) if len(candidates) > 1 else 0.0
        chosen = candidate_ious >= candidate_ious.mean(0) + std  # (C, M)
        sides = pairwise_point_box_distance(all_anchors.get_centers(), gt_boxes)  # (R, M, 4)
        positive = torch.zeros_like(ious, dtype=torch.bool).scatter_(0, candidates, chosen)
        positive &= sides.min(dim=2).values > _MIN_INSIDE
        best_ious, matched = torch.where(positive, ious, -1.0).max(dim=1)
        return torch.where(best_ious >= 0, matched, -1)

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
