"""ATSS (arXiv 1912.02424): one anchor per location, adaptive samples, and a centerness branch."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.structures import Boxes
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from vitadapter.layers.mean_over_processes import mean_over_processes
from vitadapter.layers.nms import NMS

from .dense_head import DenseHead
from .level_losses import count_samples, sum_by_level
from .single_anchor_detector import SingleAnchorDetector

__all__ = ["ATSS", "ATSSHead", "centerness_targets"]


def centerness_targets(anchors: Tensor, gt_boxes: Tensor) -> Tensor:
    """How central each anchor lies in its box (arXiv 1904.01355, equation 3).

    Args:
        anchors: (n, 4), whose centres lie inside the boxes.
        gt_boxes: (n, 4).

    Returns:
        Tensor: (n,) from 0 at the border to 1 in the middle.
    """
    distances = Box2BoxTransformLinear(normalize_by_size=False).get_deltas(anchors, gt_boxes)
    opposite = distances.unflatten(1, (2, 2))  # (n, {left and top, right and bottom}, {x, y})
    ratios = opposite.amin(1) / opposite.amax(1)
    return ratios.prod(1).sqrt()


class ATSSHead(DenseHead):
    """`DenseHead` with a third kind of prediction, the centerness logits (B, 1, H_l, W_l)."""

    def __init__(
        self,
        *,
        in_channels: int,
        num_levels: int,
        num_classes: int,
        conv_dims: Sequence[int] = (256, 256, 256, 256),
        norm: str | Callable[[int], nn.Module] = "GN",
        prior_prob: float = 0.01,
    ) -> None:
        """
        Args:
            in_channels, num_levels, num_classes, conv_dims, norm, prior_prob: as in `DenseHead`.
        """
        super().__init__(
            in_channels=in_channels,
            num_levels=num_levels,
            num_classes=num_classes,
            conv_dims=conv_dims,
            norm=norm,
            prior_prob=prior_prob,
        )
        self.centerness = nn.Conv2d(self.bbox_pred.in_channels, 1, kernel_size=3, padding=1)
        nn.init.normal_(self.centerness.weight, std=0.01)
        nn.init.zeros_(self.centerness.bias)

    def predict(self, feature: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        """Logits, deltas and centerness of one level."""
        logits = self.cls_score(self.cls_subnet(feature))
        box_feature = self.bbox_subnet(feature)
        return logits, self.predict_boxes(box_feature, scale), self.centerness(box_feature)


class ATSS(SingleAnchorDetector):
    """ATSS with centerness, losses and scores as in the official release.

    The score is class score times centerness, without FCOS's square root.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str] | None = None,
        anchor_generator: DefaultAnchorGenerator,
        anchor_matcher: Callable[[Sequence[Boxes], Boxes], Tensor],
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        box_loss_weight: float = 2.0,
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
            head: predicts logits, deltas and centerness, as `ATSSHead`.
            box2box_transform: of anchors and deltas to boxes.
            focal_loss_alpha, focal_loss_gamma: of the class loss.
            box_loss_weight: of the GIoU loss.

        Others: as in `SingleAnchorDetector`.
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
        self.box2box_transform = box2box_transform
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.box_loss_weight = box_loss_weight

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
        logits, deltas, centerness = (torch.cat(kind, 1) for kind in self.per_anchor(predictions))
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
