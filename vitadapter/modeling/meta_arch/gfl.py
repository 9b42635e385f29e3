"""Generalized Focal Loss (arXiv 2006.04388): IoU as class target, box sides as distributions."""

from collections.abc import Callable, Sequence

import torch
from detectron2.modeling import Backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from vitadapter.layers.generalized_focal_loss import distribution_focal_loss, quality_focal_loss
from vitadapter.layers.mean_over_processes import mean_over_processes
from vitadapter.layers.nms import NMS

from .dense_head import DenseHead
from .level_losses import count_samples, sum_by_level
from .single_anchor_detector import SingleAnchorDetector

__all__ = ["GFL", "GFLHead"]

# How far the largest distance to learn stays below the last bin, so that there is a bin to its
# right; from the official release.
_MARGIN = 0.1


class GFLHead(DenseHead):
    """`DenseHead` whose boxes are 4 distributions over `num_bins` bins, (B, 4 * bins, H, W)."""

    def __init__(
        self,
        *,
        in_channels: int,
        num_levels: int,
        num_classes: int,
        num_bins: int = 17,
        conv_dims: Sequence[int] = (256, 256, 256, 256),
        norm: str | Callable[[int], nn.Module] = "GN",
        prior_prob: float = 0.01,
    ) -> None:
        """
        Args:
            in_channels, num_levels, num_classes, conv_dims, norm, prior_prob: as in `DenseHead`.
            num_bins: a side is at 0 .. num_bins - 1 strides from the anchor's centre.

        Raises:
            ValueError: fewer than two bins.
        """
        if num_bins < 2:
            raise ValueError(f"num_bins must be at least 2, got {num_bins}")
        super().__init__(
            in_channels=in_channels,
            num_levels=num_levels,
            num_classes=num_classes,
            box_dim=4 * num_bins,
            conv_dims=conv_dims,
            norm=norm,
            prior_prob=prior_prob,
        )
        # Official checkpoints hold it.
        self.register_buffer("bins", torch.arange(num_bins, dtype=torch.float32))

    def distances(self, box_predictions: Tensor) -> Tensor:
        """Expected distances (n, 4) in strides, of distributions (n, 4 * bins)."""
        return box_predictions.unflatten(1, (4, -1)).softmax(2) @ self.bins.to(box_predictions)


class GFL(SingleAnchorDetector):
    """GFL with losses and scores as in the official release.

    Anchors serve to assign samples; boxes are distances from their centres.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: GFLHead,
        head_in_features: Sequence[str] | None = None,
        anchor_generator: DefaultAnchorGenerator,
        anchor_matcher: Callable[[Sequence[Boxes], Boxes], Tensor],
        anchor_scale: float = 8.0,
        num_classes: int,
        quality_focal_beta: float = 2.0,
        box_loss_weight: float = 2.0,
        distribution_loss_weight: float = 0.25,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms: NMS,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str | None = None,
    ) -> None:
        """
        Args:
            anchor_scale: width of an anchor in strides, as `anchor_generator` makes them.
            quality_focal_beta: of the class loss.
            box_loss_weight: of the GIoU loss.
            distribution_loss_weight: of the distribution focal loss.

        Others: as in `SingleAnchorDetector`.

        Raises:
            ValueError: an anchor that is not so wide, or more than one per location.
        """
        super().__init__(
            backbone=backbone,
            head=head,
            head_in_features=head_in_features,
            anchor_generator=anchor_generator,
            anchor_matcher=anchor_matcher,
            num_classes=num_classes,
            test_score_thresh=test_score_thresh,
            test_topk_candidates=test_topk_candidates,
            test_nms=test_nms,
            max_detections_per_image=max_detections_per_image,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            input_format=input_format,
        )
        self.quality_focal_beta = quality_focal_beta
        self.box_loss_weight = box_loss_weight
        self.distribution_loss_weight = distribution_loss_weight
        _check_anchor_scale(anchor_generator, anchor_scale)
        self.anchor_scale = anchor_scale
        self._transform = Box2BoxTransformLinear(normalize_by_size=True)

    def decode(self, box_predictions: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (n, 4) from distributions (n, 4 * bins) and anchors (n, 4)."""
        distances = self.head.distances(box_predictions) / self.anchor_scale
        return self._transform.apply_deltas(distances, anchors)

    def _distance_targets(self, anchors: Tensor, gt_boxes: Tensor) -> Tensor:
        """Distances (n, 4) in strides, cut to what the bins hold."""
        distances = self._transform.get_deltas(anchors, gt_boxes) * self.anchor_scale
        return distances.clamp(min=0, max=len(self.head.bins) - 1 - _MARGIN)

    def losses(
        self,
        anchors: Sequence[Boxes],
        predictions: Sequence[Sequence[Tensor]],
        gt_labels: Tensor,
        gt_boxes: Tensor,
    ) -> dict[str, Tensor]:
        """Quality focal, GIoU and distribution focal loss; see the base class.

        The box losses are weighted by the best class score.
        """
        logits, distributions = (torch.cat(kind, 1) for kind in self.per_anchor(predictions))
        positive = (gt_labels >= 0) & (gt_labels < self.num_classes)  # (N, R)
        gt_boxes = gt_boxes[positive]  # (n, 4)
        all_anchors = Boxes.cat(list(anchors)).tensor.expand(len(gt_labels), -1, -1)[positive]
        boxes = self.decode(distributions[positive], all_anchors)

        quality = torch.zeros_like(logits)
        quality[positive, gt_labels[positive]] = matched_pairwise_iou(
            Boxes(boxes.detach()), Boxes(gt_boxes)
        )
        cls_loss = quality_focal_loss(logits, quality, self.quality_focal_beta).sum(2)
        cls_loss = cls_loss.masked_fill(gt_labels < 0, 0)

        weights = logits.detach()[positive].sigmoid().amax(1)
        box_loss = generalized_box_iou_loss(boxes, gt_boxes) * weights
        sides = distribution_focal_loss(
            distributions[positive].unflatten(1, (4, -1)).flatten(0, 1),
            self._distance_targets(all_anchors, gt_boxes).flatten(),
        )
        distribution_loss = sides.view(-1, 4).mean(1) * weights

        number = mean_over_processes(count_samples(positive).to(logits.dtype))
        weight = mean_over_processes(weights.sum()).clamp(min=1)
        sizes = [len(level) for level in anchors]
        return {
            "loss_cls": sum_by_level(cls_loss, sizes) / number,
            "loss_box_reg": sum_by_level(box_loss, sizes, positive)
            * (self.box_loss_weight / weight),
            "loss_dfl": sum_by_level(distribution_loss, sizes, positive)
            * (self.distribution_loss_weight / weight),
        }


def _check_anchor_scale(anchor_generator: DefaultAnchorGenerator, anchor_scale: float) -> None:
    for box, stride in zip(anchor_generator.cell_anchors, anchor_generator.strides, strict=True):
        if not box.is_meta and float(box[0, 2] - box[0, 0]) != anchor_scale * stride:
            raise ValueError(
                f"every anchor must be anchor_scale={anchor_scale} strides wide, got one of "
                f"{float(box[0, 2] - box[0, 0])} pixels at stride {stride}"
            )
