"""How the answers of an exported file differ from those of the model."""

from collections.abc import Iterable, Mapping

import numpy as np
from detectron2.structures import Instances, pairwise_iou
from torch import Tensor

from vitadapter.data.dataset_source import Segment
from vitadapter.engine.predictor import LazyPredictor, Prediction

from .predictor import ExportedPredictor

__all__ = ["Differences", "differences", "differences_on"]

# Below, detections are many, and of no use.
_LEAST_SCORE = 0.3
# Of the boxes of one object.
_LEAST_IOU = 0.5

Differences = dict[str, list[float]]
"""Differences of each kind, of all detections or images:

detections: of each detection with a score of at least 0.3, 1 if the other answer has no detection
    of its class there (boxes with an IoU of at least 0.5), otherwise 0;
scores: of each pair, the difference of scores;
boxes: of each pair, the largest difference of a coordinate, relative to the image's longer side;
masks: of each pair, 1 - IoU of the masks;
classes of pixels, segments of pixels: of each image, the share of pixels with another class, or in
    another segment.
"""


def differences_on(
    model: LazyPredictor, exported: ExportedPredictor, images: Iterable[np.ndarray]
) -> Differences:
    """Compares the answers for images (H, W, 3), uint8, BGR."""
    found: Differences = {}
    for image in images:
        for kind, values in differences(model(image), exported(image)).items():
            found.setdefault(kind, []).extend(values)
    return found


def differences(expected: Prediction, found: Prediction) -> Differences:
    """Compares the answers for one image, and returns what these have."""
    if expected.keys() != found.keys():
        raise ValueError(f"the model answers with {list(expected)}, the file with {list(found)}")
    values: Differences = {}
    if "instances" in expected:
        values |= _of_instances(expected["instances"], found["instances"])
    if "sem_seg" in expected:
        classes = (x["sem_seg"].argmax(dim=0).cpu() for x in (expected, found))
        values["classes of pixels"] = [_share(*classes)]
    if "panoptic_seg" in expected:
        values["segments of pixels"] = [
            _of_panoptic(expected["panoptic_seg"], found["panoptic_seg"])
        ]
    return values


def _share(expected: Tensor, found: Tensor) -> float:
    return float((expected != found).float().mean())


def _pairs(expected: Instances, found: Instances) -> list[tuple[int, int]]:
    """Pairs detections of one class, those of the largest overlap first."""
    overlaps = pairwise_iou(expected.pred_boxes, found.pred_boxes)
    overlaps[expected.pred_classes[:, None] != found.pred_classes] = 0
    pairs: list[tuple[int, int]] = []
    for place in overlaps.flatten().argsort(descending=True, stable=True).tolist():
        row, column = divmod(place, len(found))
        if overlaps[row, column] < _LEAST_IOU:
            break
        if all(row != r and column != c for r, c in pairs):
            pairs.append((row, column))
    return pairs


def _of_instances(expected: Instances, found: Instances) -> Differences:
    expected, found = expected.to("cpu"), found.to("cpu")
    pairs = _pairs(expected, found)
    sure = [(expected.scores >= _LEAST_SCORE).tolist(), (found.scores >= _LEAST_SCORE).tolist()]
    pairs = [(row, column) for row, column in pairs if sure[0][row] or sure[1][column]]
    paired = [{row for row, _ in pairs}, {column for _, column in pairs}]
    alone = [
        float(place not in paired[side])
        for side in (0, 1)
        for place, is_sure in enumerate(sure[side])
        if is_sure
    ]
    side = max(expected.image_size)
    values: Differences = {"detections": alone, "scores": [], "boxes": []}
    if expected.has("pred_masks"):
        values["masks"] = []
    for row, column in pairs:
        values["scores"].append(float((expected.scores[row] - found.scores[column]).abs()))
        corners = expected.pred_boxes.tensor[row] - found.pred_boxes.tensor[column]
        values["boxes"].append(float(corners.abs().max()) / side)
        if expected.has("pred_masks"):
            masks = expected.pred_masks[row].bool(), found.pred_masks[column].bool()
            either = float((masks[0] | masks[1]).sum())
            both = float((masks[0] & masks[1]).sum())
            values["masks"].append(1 - both / either if either else 0.0)
    return values


def _of_panoptic(
    expected: tuple[Tensor, list[Segment]], found: tuple[Tensor, list[Segment]]
) -> float:
    """The share of pixels that are in no segment of both answers that is the same one.

    A segment of one is a segment of the other if their classes agree and their IoU is above 0.5, as
    in the panoptic quality.
    """
    maps = [answer[0].cpu() for answer in (expected, found)]
    classes: list[Mapping[int, int]] = [
        {segment["id"]: segment["category_id"] for segment in answer[1]}
        for answer in (expected, found)
    ]
    same = (maps[0] == 0) & (maps[1] == 0)
    for first, of_class in classes[0].items():
        for second, other_class in classes[1].items():
            both = (maps[0] == first) & (maps[1] == second)
            either = (maps[0] == first) | (maps[1] == second)
            if of_class == other_class and 2 * both.sum() > either.sum():
                same |= both
    return 1 - float(same.float().mean())
