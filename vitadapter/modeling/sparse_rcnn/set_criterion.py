"""The set prediction loss of Sparse R-CNN: each object is learned by exactly one proposal."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from fvcore.nn import sigmoid_focal_loss
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou, generalized_box_iou_loss

from vitadapter.layers.mean_over_processes import mean_over_processes

__all__ = ["HungarianMatcher", "SetCriterion"]

# It replaces costs that are not finite, which the assignment does not accept. The loss is not
# finite then either, which stops the training with a message.
_WORST = 1e6


def _sizes(instances: Instances) -> Tensor:
    """Returns (width, height, width, height) of an image in pixels, without padding."""
    height, width = instances.image_size
    return instances.gt_boxes.tensor.new_tensor([width, height, width, height])


class HungarianMatcher:
    """Assigns one proposal to each object so that the sum of the costs is minimal.

    Args:
        cls_weight: weight of the class cost, which is the focal loss of "yes" minus that of "no".
        box_weight: weight of the L1 distance of boxes, in image sizes.
        giou_weight: weight of the negative generalised IoU.
        focal_loss_alpha, focal_loss_gamma: parameters of the focal loss.
    """

    def __init__(
        self,
        cls_weight: float = 2.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
    ) -> None:
        self.cls_weight = cls_weight
        self.box_weight = box_weight
        self.giou_weight = giou_weight
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma

    @torch.no_grad()
    def __call__(
        self, logits: Tensor, boxes: Tensor, instances: Instances
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            logits: (P, K) of one image.
            boxes: (P, 4) in pixels.
            instances: the M objects of the image.

        Returns:
            Indexes of proposals and of their objects, both (min(P, M),).
        """
        gt_boxes, size = instances.gt_boxes.tensor, _sizes(instances)
        cost = (
            self.cls_weight * self._class_cost(logits)[:, instances.gt_classes]
            + self.box_weight * torch.cdist(boxes / size, gt_boxes / size, p=1)
            - self.giou_weight * generalized_box_iou(boxes, gt_boxes)
        )  # (P, M)
        cost = cost.nan_to_num(_WORST, _WORST, -_WORST).cpu().numpy()
        rows, columns = linear_sum_assignment(cost)
        device = logits.device
        return torch.as_tensor(rows, device=device), torch.as_tensor(columns, device=device)

    def _class_cost(self, logits: Tensor) -> Tensor:
        """Returns the focal loss of "yes" minus that of "no", (P, K)."""
        yes, no = torch.ones_like(logits), torch.zeros_like(logits)
        alpha, gamma = self.focal_loss_alpha, self.focal_loss_gamma
        return sigmoid_focal_loss(logits, yes, alpha, gamma) - sigmoid_focal_loss(
            logits, no, alpha, gamma
        )


class SetCriterion:
    """The focal, L1 and GIoU loss of one stage, between matched proposals and objects.

    Args:
        matcher: assigns proposals to objects. Losses have the weights of its costs.
    """

    def __init__(self, matcher: HungarianMatcher) -> None:
        self.matcher = matcher

    def __call__(
        self, logits: Tensor, boxes: Tensor, gt_instances: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """
        Args:
            logits: (B, P, K).
            boxes: (B, P, 4) in pixels.
            gt_instances: ground truth of each image, with `gt_boxes` and `gt_classes`.

        Returns:
            "loss_cls", "loss_box_reg" and "loss_giou", divided by the number of matched proposals.
        """
        matcher, targets, pairs = self.matcher, torch.zeros_like(logits), []
        for i, instances in enumerate(gt_instances):
            rows, columns = matcher(logits[i], boxes[i], instances)
            targets[i, rows, instances.gt_classes[columns]] = 1
            gt_boxes = instances.gt_boxes.tensor[columns]
            pairs.append((boxes[i, rows], gt_boxes, _sizes(instances).expand_as(gt_boxes)))
        predicted, expected, sizes = (torch.cat(x) for x in zip(*pairs, strict=True))
        cls_loss = sigmoid_focal_loss(
            logits, targets, matcher.focal_loss_alpha, matcher.focal_loss_gamma, reduction="sum"
        )
        box_loss = F.l1_loss(predicted / sizes, expected / sizes, reduction="sum")
        giou_loss = generalized_box_iou_loss(predicted, expected, reduction="sum")
        number = mean_over_processes(logits.new_tensor(float(len(predicted)))).clamp(min=1)
        return {
            "loss_cls": cls_loss * (matcher.cls_weight / number),
            "loss_box_reg": box_loss * (matcher.box_weight / number),
            "loss_giou": giou_loss * (matcher.giou_weight / number),
        }
