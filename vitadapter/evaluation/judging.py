"""Which detections are right, and what is wrong with the others: TIDE's kinds of errors."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from vitadapter.data.coco.json_entries import Id
from vitadapter.data.coco.results import Instance

__all__ = [
    "ERRORS",
    "IOU",
    "JudgedDetection",
    "JudgedImage",
    "JudgedObject",
    "judge_images",
    "region_ious",
]

ERRORS = ("cls", "loc", "both", "dupe", "bkg", "miss")
"""Each false detection and each missed object is one of these:

- cls: localised correctly but of the wrong class;
- loc: of the right class but localised wrongly;
- both: of the wrong class and localised wrongly;
- dupe: right if there were no detection of the same object with a higher score;
- bkg: background;
- miss: an object that no detection would find if it were corrected.
"""
IOU = 0.5
"""The smallest IoU of a right detection."""

_BACKGROUND = 0.1  # the largest IoU of a detection of background


@dataclass(slots=True, eq=False)
class JudgedObject:
    """An object of an image.

    Attributes:
        instance: its annotation.
        category: its category id.
        found_by: the right detection of it; None if no detection finds it.
        best: of the wrong detections that would find it if they were corrected, the one with the
            best score; None if there is none.
    """

    instance: Instance
    category: Id
    found_by: "JudgedDetection | None" = None
    best: "JudgedDetection | None" = None


@dataclass(slots=True, eq=False)
class JudgedDetection:
    """A detection in an image.

    Attributes:
        instance: it, in COCO's results format.
        category: its category id.
        score: its score.
        in_crowd: whether it is of a crowd, so that it is not an error of COCO's AP.
        error: one of `ERRORS`; None for a right detection.
        about: the object that it would find if it were corrected; None if there is none.
        target: the same, but None if another detection finds that object.
    """

    instance: Instance
    category: Id
    score: float
    in_crowd: bool = False  # as with `tidecv`, it can still be corrected
    error: str | None = None
    about: JudgedObject | None = None
    target: JudgedObject | None = None


@dataclass(frozen=True)
class JudgedImage:
    """An image.

    Attributes:
        image: its id.
        detections: those that count, best score first.
        objects: without crowds.
        crowds: annotations of crowds.
    """

    image: Id
    detections: list[JudgedDetection]
    objects: list[JudgedObject]
    crowds: list[Instance]


def _regions(instances: Iterable[Instance], task: str, api: COCO) -> list[object]:
    """Boxes, or masks as RLE."""
    return [x["bbox"] if task == "bbox" else api.annToRLE(x) for x in instances]


def _ious(detections: list[object], objects: list[object], crowds: bool) -> np.ndarray:
    """IoU (D, N); of crowds, the share of the detection that is inside."""
    if not detections or not objects:
        return np.zeros((len(detections), len(objects)))
    return np.asarray(mask_util.iou(detections, objects, [crowds] * len(objects)))


def region_ious(
    detections: Sequence[Instance], objects: Sequence[Instance], task: str, api: COCO
) -> np.ndarray:
    """The IoU (D, N) of each detection with each object.

    Args:
        detections: D, of one image.
        objects: N, of the same image.
        task: "bbox" or "segm".
        api: the annotations, from `coco_api`.
    """
    return _ious(_regions(detections, task, api), _regions(objects, task, api), False)


def _same_class(detections: Sequence[Instance], objects: Sequence[Instance]) -> np.ndarray:
    columns = [np.array([x["category_id"] for x in group]) for group in (detections, objects)]
    return columns[0][:, None] == columns[1]


def _counted(detections: Sequence[Instance], max_dets_per_image: int) -> list[Instance]:
    """The detections of an image that count, best score first."""
    seen: Counter[Id] = Counter()
    counted = []
    for found in sorted(detections, key=lambda x: -x["score"]):
        seen[found["category_id"]] += 1
        if seen[found["category_id"]] <= max_dets_per_image:
            counted.append(found)
    return counted


def _match(
    detections: list[JudgedDetection], objects: list[JudgedObject], ious: np.ndarray
) -> np.ndarray:
    """Notes what finds the objects. Returns for each detection whether it is correct (D,).

    Args:
        detections: D, best score first.
        objects: N.
        ious: (D, N), 0 for objects of another class.
    """
    free = ious.copy()
    correct = np.zeros(len(detections), dtype=bool)
    for index in range(len(detections) if objects else 0):
        nearest = free[index].argmax()
        if free[index, nearest] >= IOU:
            correct[index], objects[nearest].found_by = True, detections[index]
            free[:, nearest] = 0
    return correct


def _error(same: np.ndarray, other: np.ndarray, found: np.ndarray) -> tuple[str, int | None]:
    """The kind of a wrong detection, and the object that it would find if it were corrected.

    Args:
        same: IoU (N,) with each object, 0 for those of another class.
        other: IoU (N,) with each object, 0 for those of the same class.
        found: (N,), whether the object is found by a correct detection.
    """
    if not len(found):
        return "bkg", None
    if _BACKGROUND <= same.max() <= IOU:
        return "loc", int(same.argmax())
    if other.max() >= IOU:
        return "cls", int(other.argmax())
    if same[found].max(initial=0) >= IOU:
        return "dupe", None
    return ("bkg" if max(same.max(), other.max()) <= _BACKGROUND else "both"), None


def _judge_image(
    found: Sequence[Instance], truth: Sequence[Instance], task: str, api: COCO
) -> tuple[list[JudgedDetection], list[JudgedObject], list[Instance]]:
    """Finds the errors in one image; `found` has the best score first."""
    crowds = [x for x in truth if x["iscrowd"]]
    truth = [x for x in truth if not x["iscrowd"]]
    detections = [JudgedDetection(x, x["category_id"], x["score"]) for x in found]
    objects = [JudgedObject(x, x["category_id"]) for x in truth]
    regions = _regions(found, task, api)
    ious = _ious(regions, _regions(truth, task, api), False)
    same_class = _same_class(found, truth)
    in_crowd = _ious(regions, _regions(crowds, task, api), True) >= IOU
    in_crowd = (in_crowd & _same_class(found, crowds)).any(1)
    correct = _match(detections, objects, ious * same_class)
    taken = np.array([x.found_by is not None for x in objects], dtype=bool)
    for index in np.flatnonzero(~correct):
        detection, same = detections[index], ious[index] * same_class[index]
        detection.in_crowd = bool(in_crowd[index])
        detection.error, nearest = _error(same, ious[index] - same, taken)
        detection.about = None if nearest is None else objects[nearest]
        if nearest is not None and not taken[nearest]:
            detection.target = objects[nearest]
            detection.target.best = detection.target.best or detection
    return detections, objects, crowds


def judge_images(
    api: COCO,
    predictions: Mapping[Id, Sequence[Instance]],
    task: str,
    *,
    max_dets_per_image: int = 100,
) -> list[JudgedImage]:
    """Judges the detections of a model.

    Args:
        api: the annotations, from `coco_api`.
        predictions: detections in COCO's results format by image id.
        task: "bbox" or "segm".
        max_dets_per_image: number of detections of each category that count.

    Returns:
        The images by ascending id. If detections below a score are left out, the judgement of the
        others stays the same, since each object goes to the detection with the best score.
    """
    judged = []
    for image in sorted(api.imgs):
        found = _counted(predictions.get(image, ()), max_dets_per_image)
        judged.append(JudgedImage(image, *_judge_image(found, api.imgToAnns[image], task, api)))
    return judged
