"""ATSS (arXiv 1912.02424): one anchor per location, adaptive samples, and a centerness branch."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from vitadapter.layers.mean_over_processes import mean_over_processes

from .detector import DenseHead, count_samples, sum_by_level

__all__ = ["ATSSHead", "ATSSMatcher", "centerness_targets"]

_MIN_INSIDE = 0.01  # pixels; from the official release, the paper says "inside"


def _ious(anchors: Boxes, gt_boxes: Boxes, candidates: Tensor) -> Tensor:
    """(C, M) of each box with its candidates: all pairs would be a thousand times as many."""
    boxes = Boxes(gt_boxes.tensor.repeat(len(candidates), 1))  # (C * M, 4)
    return matched_pairwise_iou(anchors[candidates.flatten()], boxes).view_as(candidates)


class ATSSMatcher:
    """Assigns anchors to ground-truth boxes by statistics of each box's own surroundings.

    Of every level the `topk` anchors with the nearest centres are candidates of a box. Those with
    an IoU of at least the candidates' mean plus standard deviation, and with their centre inside
    the box, are its positives (paper algorithm 1). An anchor that several boxes want goes to the
    one of highest IoU.

    Args:
        topk: candidates per box and level; default from the paper.

    Raises:
        ValueError: it is not positive.
    """

    def __init__(self, topk: int = 9) -> None:
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
            (R,) index of the ground-truth box for the anchors of all levels, -1 for
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


def centerness_targets(anchors: Tensor, gt_boxes: Tensor) -> Tensor:
    """How central each anchor lies in its box (arXiv 1904.01355, equation 3).

    Args:
        anchors: (n, 4), whose centres lie inside the boxes.
        gt_boxes: (n, 4).

    Returns:
        (n,) from 0 at the border to 1 in the middle.
    """
    distances = Box2BoxTransformLinear(normalize_by_size=False).get_deltas(anchors, gt_boxes)
    opposite = distances.unflatten(1, (2, 2))  # (n, {left and top, right and bottom}, {x, y})
    ratios = opposite.amin(1) / opposite.amax(1)
    return ratios.prod(1).sqrt()


class ATSSHead(DenseHead):
    """Class, box deltas and, as a third kind of prediction, centerness logits (B, 1, H_l, W_l).

    Losses as in the official release. The score is class score times centerness, without FCOS's
    square root.

    Args:
        in_channels, num_levels, num_classes, conv_dims, norm: as in `DenseHead`.
        box2box_transform: of anchors and deltas to boxes.
        focal_loss_alpha, focal_loss_gamma: of the class loss.
        box_loss_weight: of the GIoU loss.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_levels: int,
        num_classes: int,
        conv_dims: Sequence[int],
        norm: str | Callable[[int], nn.Module],
        box2box_transform: Box2BoxTransform,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        box_loss_weight: float = 2.0,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            num_levels=num_levels,
            num_classes=num_classes,
            conv_dims=conv_dims,
            norm=norm,
        )
        self.centerness = nn.Conv2d(self.bbox_pred.in_channels, 1, kernel_size=3, padding=1)
        nn.init.normal_(self.centerness.weight, std=0.01)
        nn.init.zeros_(self.centerness.bias)
        self.box2box_transform = box2box_transform
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.box_loss_weight = box_loss_weight

    def predict(self, feature: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        """Logits, deltas and centerness of one level."""
        logits = self.cls_score(self.cls_subnet(feature))
        box_feature = self.bbox_subnet(feature)
        return logits, self.predict_boxes(box_feature, scale), self.centerness(box_feature)

    def decode(self, box_predictions: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (n, 4) from deltas (n, 4) and anchors (n, 4)."""
        return self.box2box_transform.apply_deltas(box_predictions, anchors)

    def losses(
        self,
        anchors: Sequence[Boxes],
        predictions: Sequence[Sequence[Tensor]],
        gt_labels: Tensor,
        gt_boxes: Tensor,
    ) -> dict[str, Tensor]:
        """Focal loss, GIoU loss weighted by centerness, and centerness; see the base class."""
        logits, deltas, centerness = (torch.cat(kind, 1) for kind in predictions)
        positive = (gt_labels >= 0) & (gt_labels < self.num_classes)  # (N, R)
        targets = F.one_hot(gt_labels.clamp(min=0), self.num_classes + 1)[..., :-1]
        cls_loss = sigmoid_focal_loss(
            logits,
            targets.to(logits.dtype),
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
        ).sum(2)
        cls_loss = cls_loss.masked_fill(gt_labels < 0, 0)

        all_anchors = Boxes.cat(list(anchors)).tensor.expand_as(gt_boxes)[positive]
        central = centerness_targets(all_anchors, gt_boxes[positive])
        boxes = self.decode(deltas[positive], all_anchors)
        box_loss = generalized_box_iou_loss(boxes, gt_boxes[positive]) * central
        central_loss = F.binary_cross_entropy_with_logits(
            centerness[positive].squeeze(1), central, reduction="none"
        )

        number = mean_over_processes(count_samples(positive).to(logits.dtype))
        weight = mean_over_processes(central.sum()).clamp(min=1)
        sizes = [len(level) for level in anchors]
        return {
            "loss_cls": sum_by_level(cls_loss, sizes) / number,
            "loss_box_reg": sum_by_level(box_loss, sizes, positive)
            * (self.box_loss_weight / weight),
            "loss_centerness": sum_by_level(central_loss, sizes, positive) / number,
        }
