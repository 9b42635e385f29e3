"""Non-maximum suppression, which a config can exchange."""

from typing import Protocol

import vitadapter.detectron2_required  # noqa: F401

# isort: split
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

__all__ = ["NMS", "HardNMS", "check_detections", "suppress_detections"]


class NMS(Protocol):
    """Suppresses overlapping detections of one image, separately for each class."""

    def __call__(
        self, boxes: Tensor, scores: Tensor, idxs: Tensor, max_output: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            boxes: (N, 4), as (x0, y0, x1, y1) in pixels, finite.
            scores: (N,), finite.
            idxs: (N,) integers; a box suppresses only boxes with the same index.
            max_output: maximum number of boxes to return; None for all.

        Returns:
            (K,) indexes of the boxes that are kept, best first, and their (K,) scores, which the
            suppression may have lowered.

        Raises:
            ValueError: wrong shapes, or a negative `max_output`.
        """
        ...


def check_detections(
    boxes: Tensor, scores: Tensor, idxs: Tensor, max_output: int | None = None
) -> None:
    """Raises the ValueError that `NMS` describes."""
    number = len(boxes)
    if boxes.shape != (number, 4) or scores.shape != (number,) or idxs.shape != (number,):
        raise ValueError(
            "boxes (N, 4), scores (N,) and idxs (N,) are needed, got "
            f"{tuple(boxes.shape)}, {tuple(scores.shape)} and {tuple(idxs.shape)}"
        )
    if max_output is not None and max_output < 0:
        raise ValueError(f"max_output must not be negative, got {max_output}")


class HardNMS:
    """An `NMS` that drops each box that overlaps a better one too much.

    Args:
        iou_threshold: boxes whose IoU with a better one is higher are dropped.

    Raises:
        ValueError: `iou_threshold` is not in [0, 1].
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
    """Clips boxes to their image, drops those without area and suppresses overlapping ones.

    Args:
        boxes: (N, 4), finite.
        scores: (N,), finite.
        classes: (N,) integers.
        image_size: (height, width).
        nms: how overlapping boxes are suppressed.
        max_detections: maximum number of detections to return.

    Returns:
        Detections with "pred_boxes", "scores" and "pred_classes", best first.
    """
    boxes = Boxes(boxes.tensor)
    boxes.clip(image_size)
    kept = boxes.nonempty()
    boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
    keep, scores = nms(boxes.tensor, scores, classes, max_detections)
    return Instances(image_size, pred_boxes=boxes[keep], scores=scores, pred_classes=classes[keep])
