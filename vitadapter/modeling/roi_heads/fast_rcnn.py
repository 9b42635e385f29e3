"""The last step of box detection, with an exchangeable non-maximum suppression."""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from vitadapter.layers.nms import NMS

__all__ = ["fast_rcnn_inference"]


def fast_rcnn_inference(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, int]],
    score_thresh: float,
    nms: NMS,
    topk_per_image: int,
) -> list[Instances]:
    """Detectron2's function of the same name, with any `NMS`.

    Args:
        boxes: for each image, (R, K * 4) or, class-agnostic, (R, 4), as (x0, y0, x1, y1) in pixels.
        scores: for each image, (R, K + 1) in [0, 1]; the last is the background's.
        image_shapes: (height, width) of each image, to which boxes are clipped.
        score_thresh: only boxes with a higher score become candidates.
        nms: how overlapping candidates of a class are suppressed.
        topk_per_image: maximum number of detections of an image; negative for all.

    Returns:
        For each image, detections with "pred_boxes", "scores" and "pred_classes", best first.
    """
    return [
        _detect(*arguments, score_thresh, nms, topk_per_image)
        for arguments in zip(boxes, scores, image_shapes, strict=True)
    ]


def _detect(
    boxes: Tensor,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms: NMS,
    topk: int,
) -> Instances:
    finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    boxes, scores = boxes[finite], scores[finite, :-1]  # (R, K * 4), (R, K)
    clipped = Boxes(boxes.reshape(-1, 4))
    clipped.clip(image_shape)
    boxes = clipped.tensor.view(len(boxes), boxes.shape[1] // 4, 4)  # (R, K or 1, 4)
    rows, classes = (scores > score_thresh).nonzero().unbind(1)
    boxes = boxes[rows, classes if boxes.shape[1] > 1 else torch.zeros_like(classes)]
    keep, kept_scores = nms(boxes, scores[rows, classes], classes, None if topk < 0 else topk)
    result = Instances(image_shape)
    result.pred_boxes = Boxes(boxes[keep])
    result.scores = kept_scores
    result.pred_classes = classes[keep]
    return result
