"""Generalized Focal Loss (arXiv 2006.04388): IoU as class target, box sides as distributions."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from vitadapter.layers.mean_over_processes import mean_over_processes

from .detector import DenseHead, count_samples, sum_by_level

__all__ = ["GFLHead", "distribution_focal_loss", "quality_focal_loss"]

# The largest distance to learn is this far below the last bin, so that there is a bin to its right;
# from the official release.
_MARGIN = 0.1


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """`|y - sigmoid(x)| ** beta * BCE(sigmoid(x), y)` (equation 3), element by element.

    For y in {0, 1}, this is the focal loss without the class weight.

    Args:
        logits: x, of any shape.
        quality: y in [0, 1], of the same shape: the IoU of the prediction for the class that is
            present, and 0 for the others. It gets no gradient.
        beta: focusing parameter; the default is the paper's.
    """
    quality = quality.detach()
    modulation = (quality - logits.sigmoid()).abs() ** beta
    return modulation * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropies of the two bins next to the target, weighted by their nearness (equation 6).

    Args:
        logits: (n, bins); bin i stands for the value i.
        target: (n,) values in [0, bins - 1).

    Returns:
        (n,).
    """
    left = target.long()
    right_weight = target - left
    return (
        F.cross_entropy(logits, left, reduction="none") * (1 - right_weight)
        + F.cross_entropy(logits, left + 1, reduction="none") * right_weight
    )


class GFLHead(DenseHead):
    """Predicts class scores with quality, and boxes as distributions (B, 4 * bins, H, W) over bins.

    Anchors are used to assign samples; boxes are distances from their centres. Losses and scores
    are those of the official release.

    Args:
        in_channels, num_levels, num_classes, conv_dims, norm: as in `DenseHead`.
        num_bins: sides lie 0 .. num_bins - 1 strides from the anchor's centre.
        anchor_scale: width in strides of the anchors that the anchor generator makes.
        quality_focal_beta: `beta` of the class loss.
        box_loss_weight: weight of the GIoU loss.
        distribution_loss_weight: weight of the distribution focal loss.

    Raises:
        ValueError: fewer than two bins.
    """

    bins: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        num_levels: int,
        num_classes: int,
        conv_dims: Sequence[int],
        norm: str | Callable[[int], nn.Module],
        num_bins: int = 17,
        anchor_scale: float = 8.0,
        quality_focal_beta: float = 2.0,
        box_loss_weight: float = 2.0,
        distribution_loss_weight: float = 0.25,
    ) -> None:
        if num_bins < 2:
            raise ValueError(f"num_bins must be at least 2, got {num_bins}")
        super().__init__(
            in_channels=in_channels,
            num_levels=num_levels,
            num_classes=num_classes,
            conv_dims=conv_dims,
            norm=norm,
            box_dim=4 * num_bins,
        )
        # A buffer because official checkpoints contain it.
        self.register_buffer("bins", torch.arange(num_bins, dtype=torch.float32))
        self.anchor_scale = anchor_scale
        self.quality_focal_beta = quality_focal_beta
        self.box_loss_weight = box_loss_weight
        self.distribution_loss_weight = distribution_loss_weight
        self._transform = Box2BoxTransformLinear(normalize_by_size=True)

    def check_anchors(self, anchor_generator: DefaultAnchorGenerator) -> None:
        """Raises ValueError unless there is one anchor per location, with the right width."""
        super().check_anchors(anchor_generator)
        cells = zip(anchor_generator.cell_anchors, anchor_generator.strides, strict=True)
        for box, stride in cells:
            if not box.is_meta and float(box[0, 2] - box[0, 0]) != self.anchor_scale * stride:
                raise ValueError(
                    f"every anchor must be anchor_scale={self.anchor_scale} strides wide, got one "
                    f"of {float(box[0, 2] - box[0, 0])} pixels at stride {stride}"
                )

    def distances(self, box_predictions: Tensor) -> Tensor:
        """Returns the expected distances (n, 4) in strides of distributions (n, 4 * bins)."""
        return box_predictions.unflatten(1, (4, -1)).softmax(2) @ self.bins.to(box_predictions)

    def decode(self, box_predictions: Tensor, anchors: Tensor) -> Tensor:
        """Decodes distributions (n, 4 * bins) at anchors (n, 4) to boxes (n, 4)."""
        distances = self.distances(box_predictions) / self.anchor_scale
        return self._transform.apply_deltas(distances, anchors)

    def _distance_targets(self, anchors: Tensor, gt_boxes: Tensor) -> Tensor:
        """Returns the distances (n, 4) in strides, clipped to the range of the bins."""
        distances = self._transform.get_deltas(anchors, gt_boxes) * self.anchor_scale
        return distances.clamp(min=0, max=len(self.bins) - 1 - _MARGIN)

    def losses(
        self,
        anchors: Sequence[Boxes],
        predictions: Sequence[list[Tensor]],
        gt_labels: Tensor,
        gt_boxes: Tensor,
    ) -> dict[str, Tensor]:
        """Computes quality focal, GIoU and distribution focal loss.

        The last two are weighted by the best class score of each anchor.
        """
        logits, distributions = (torch.cat(kind, 1) for kind in predictions)
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
