"""Non-maximum suppression as a part that a config can exchange."""

from typing import Protocol

from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

__all__ = ["NMS", "HardNMS", "check_detections", "suppress_detections"]


class NMS(Protocol):
    """Suppression of one image's detections, each class by itself."""

    def __call__(
        self, boxes: Tensor, scores: Tensor, idxs: Tensor, max_output: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            boxes: (N, 4), as (x0, y0, x1, y1) in pixels, finite.
            scores: (N,), finite.
            idxs: (N,) integers; boxes suppress those of the same index only.
            max_output: at most so many best boxes are returned; None for all.

        Returns:
            (K,) indexes of the boxes that stay, best first, and their (K,)
            scores, which the suppression may have lowered.

        Raises:
            ValueError: other shapes, or a negative `max_output`.
        """
        ...


def check_detections(
    boxes: Tensor, scores: Tensor, idxs: Tensor, max_output: int | None = None
) -> None:
    """Raises the ValueError of `NMS`."""
    number = len(boxes)
    if boxes.shape != (number, 4) or scores.shape != (number,) or idxs.shape != (number,):
        raise ValueError(
            "boxes (N, 4), scores (N,) and idxs (N,) are needed, got "
            f"{tuple(boxes.shape)}, {tuple(scores.shape)} and {tuple(idxs.shape)}"
        )
    if max_output is not None and max_output < 0:
        raise ValueError(f"max_output must not be negative, got {max_output}")


class HardNMS:
    """An `NMS` that drops every box which overlaps a better one too much.

    Args:
        iou_threshold: boxes of a higher IoU with a better one are dropped.

    Raises:
        ValueError: it is not in [0, 1].
    """

    def __init__(self, iou_threshold: float = 0.5) -> None:
        if not 0 <= iou_threshold <= 1:
            raise ValueError(f"iou_threshold must be in [0, 1], got {iou_threshold}")
        self.iou_threshold = iou_threshold

    def __call__(
        self, boxes: Tensor, scores: Tensor, idxs: Tensor, max_output: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `NMS`."""
        check_detections(boxes, scores, idxs, max_output)
        keep = batched_nms(boxes, scores, idxs, self.iou_threshold)[:max_output]
        return keep, scores[keep]


def suppress_detections(
    boxes: Boxes,
    scores: Tensor,
    classes: Tensor,
    image_size: tuple[int, int],
    nms: NMS,
    max_detections: int,
) -> Instances:
    """Cuts the boxes of one image to it, drops those without area and suppresses the others.

    Args:
        boxes: (N, 4), finite.
        scores: (N,), finite.
        classes: (N,).
        image_size: (height, width).
        nms: the suppression.
        max_detections: at most so many detections.

    Returns:
        with "pred_boxes", "scores" and "pred_classes", best first.
    """
    boxes = Boxes(boxes.tensor)
    boxes.clip(image_size)
    there = boxes.nonempty()
    boxes, scores, classes = boxes[there], scores[there], classes[there]
    keep, scores = nms(boxes.tensor, scores, classes, max_detections)
    return Instances(image_size, pred_boxes=boxes[keep], scores=scores, pred_classes=classes[keep])
