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

_MIN_INSIDE = 0.01  # pixels, as in the official release; the paper only says "inside"


def _ious(anchors: Boxes, gt_boxes: Boxes, candidates: Tensor) -> Tensor:
    """Returns the IoUs (C, M) of boxes with their candidates only, a thousandth of all pairs."""
    boxes = Boxes(gt_boxes.tensor.repeat(len(candidates), 1))  # (C * M, 4)
    return matched_pairwise_iou(anchors[candidates.flatten()], boxes).view_as(candidates)


class ATSSMatcher:
    """Assigns anchors to ground-truth boxes by statistics of the anchors around each box.

    On every level, the `topk` anchors whose centres are nearest are candidates of a box. A
    candidate is positive if its centre lies inside the box and its IoU is at least the candidates'
    mean plus standard deviation (paper algorithm 1). An anchor that is positive for several boxes
    is assigned to the one with the highest IoU.

    Args:
        topk: candidates per box and level; the default is the paper's.

    Raises:
        ValueError: `topk` is not positive.
    """

    def __init__(self, topk: int = 9) -> None:
        if topk < 1:
            raise ValueError(f"topk must be at least 1, got {topk}")
        self.topk = topk

    @torch.no_grad()
    def __call__(self, anchors: Sequence[Boxes], gt_boxes: Boxes) -> Tensor:
        """
        Args:
            anchors: anchors of each level, (R_l, 4) in pixels.
            gt_boxes: the M boxes of one image.

        Returns:
            (R,) index of the ground-truth box for each anchor of all levels, -1 for background.
        """
        all_anchors = Boxes.cat(list(anchors))
        number, device = len(all_anchors), all_anchors.device
        if number == 0 or len(gt_boxes) == 0:
            return torch.full((number,), -1, device=device)
        candidates = self._candidates(anchors, gt_boxes)  # (C, M)
        ious = _ious(all_anchors, gt_boxes, candidates)  # (C, M)
        # A single candidate has no deviation.
        std = ious.std(0) if len(candidates) > 1 else 0.0
        centers, boxes = all_anchors.get_centers()[candidates], gt_boxes.tensor  # (C, M, 2), (M, 4)
        sides = torch.cat([centers - boxes[:, :2], boxes[:, 2:] - centers], dim=2)  # (C, M, 4)
        positive = (ious >= ious.mean(0) + std) & (sides.amin(dim=2) > _MIN_INSIDE)
        ious = torch.where(positive, ious, -1.0)
        best = ious.new_full((number,), -1.0)
        best = best.scatter_reduce(0, candidates.flatten(), ious.flatten(), "amax")
        # If several boxes overlap an anchor equally, it is assigned to the first.
        wins = positive & (ious == best[candidates])  # (C, M)
        index = torch.arange(len(gt_boxes), device=device).expand_as(candidates)
        matched = torch.full((number,), len(gt_boxes), device=device)
        matched = matched.scatter_reduce(0, candidates[wins], index[wins], "amin")
        return torch.where(matched < len(gt_boxes), matched, -1)

    def _candidates(self, anchors: Sequence[Boxes], gt_boxes: Boxes) -> Tensor:
        """Returns the indexes (C, M) of each box's candidates among the anchors of all levels."""
        gt_centers = gt_boxes.get_centers()
        candidates: list[Tensor] = []
        start = 0
        for level in anchors:
            distances = torch.cdist(
                level.get_centers(),
                gt_centers,
                compute_mode="donot_use_mm_for_euclid_dist",  # the other modes are off by pixels
            )
            nearest = distances.topk(min(self.topk, len(level)), dim=0, largest=False).indices
            candidates.append(nearest + start)
            start += len(level)
        return torch.cat(candidates)


def centerness_targets(anchors: Tensor, gt_boxes: Tensor) -> Tensor:
    """Computes how central each anchor lies in its box (arXiv 1904.01355, equation 3).

    Args:
        anchors: (n, 4), whose centres lie inside the boxes.
        gt_boxes: (n, 4).

    Returns:
        (n,), from 0 at the border to 1 in the middle.
    """
    distances = Box2BoxTransformLinear(normalize_by_size=False).get_deltas(anchors, gt_boxes)
    opposite = distances.unflatten(1, (2, 2))  # (n, {left and top, right and bottom}, {x, y})
    ratios = opposite.amin(1) / opposite.amax(1)
    return ratios.prod(1).sqrt()


class ATSSHead(DenseHead):
    """Predicts classes, box deltas and, as a third kind, centerness logits (B, 1, H_l, W_l).

    The losses are those of the official release. The score of a detection is its class score times
    its centerness, without the square root of FCOS.

    Args:
        in_channels, num_levels, num_classes, conv_dims, norm: as in `DenseHead`.
        box2box_transform: maps anchors and deltas to boxes.
        focal_loss_alpha, focal_loss_gamma: parameters of the class loss.
        box_loss_weight: weight of the GIoU loss.
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
        nn.init.zeros_(self.centerness.get_parameter("bias"))
        self.box2box_transform = box2box_transform
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.box_loss_weight = box_loss_weight

    def predict(self, feature: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        """Returns logits, deltas and centerness of one level."""
        logits = self.cls_score(self.cls_subnet(feature))
        box_feature = self.bbox_subnet(feature)
        return logits, self.predict_boxes(box_feature, scale), self.centerness(box_feature)

    def decode(self, box_predictions: Tensor, anchors: Tensor) -> Tensor:
        """Decodes deltas (n, 4) of anchors (n, 4) to boxes (n, 4)."""
        return self.box2box_transform.apply_deltas(box_predictions, anchors)

    def losses(
        self,
        anchors: Sequence[Boxes],
        predictions: Sequence[list[Tensor]],
        gt_labels: Tensor,
        gt_boxes: Tensor,
    ) -> dict[str, Tensor]:
        """Computes focal loss, GIoU loss weighted by centerness, and centerness loss."""
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
