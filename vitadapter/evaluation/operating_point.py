"""What a detector does at a threshold of the score: precision, recall, F1, and its confusions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO

from vitadapter.data.coco.json_entries import Id
from vitadapter.evaluation.judging import (
    IOU,
    JudgedDetection,
    JudgedImage,
    JudgedObject,
    region_ious,
)

__all__ = ["Pairs", "ScoreCurves", "confusions", "pair_up", "score_curves"]

_THRESHOLDS = np.linspace(0, 1, 101)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


@dataclass(frozen=True)
class ScoreCurves:
    """Right and false detections for T thresholds and K classes, at an IoU of 0.5.

    Attributes:
        thresholds: (T,), scores in [0, 1].
        right: (K, T), right detections with at least this score.
        false: (K, T), false ones; those of crowds do not count.
        objects: (K,), numbers of objects.
    """

    thresholds: np.ndarray
    right: np.ndarray
    false: np.ndarray
    objects: np.ndarray

    def figures(self, classes: slice | int = slice(None)) -> tuple[np.ndarray, ...]:
        """Precision, recall and F1 (T,) of the pooled detections of some classes.

        Precision is NaN without detections, and recall is NaN without objects.
        """
        rows = slice(classes, classes + 1) if isinstance(classes, int) else classes
        right, false = self.right[rows].sum(0), self.false[rows].sum(0)
        objects = self.objects[rows].sum()
        return (
            _ratio(right, right + false),
            _ratio(right, np.full(right.shape, objects)),
            2 * right / np.maximum(right + false + objects, 1),
        )

    def figures_at(self, index: int) -> tuple[np.ndarray, ...]:
        """Precision, recall and F1 (K,) of each class at one threshold; NaN as in `figures`."""
        right, false = self.right[:, index], self.false[:, index]
        return (
            _ratio(right, right + false),
            _ratio(right, self.objects),
            _ratio(2 * right, right + false + self.objects),
        )

    def best(self, classes: slice | int = slice(None)) -> int:
        """The index of the threshold with the best F1; of several, the one in their middle."""
        scores = self.figures(classes)[2]
        best = np.flatnonzero(scores == scores.max())
        return int(best[len(best) // 2])


def score_curves(images: Sequence[JudgedImage], numbers: dict[Id, int]) -> ScoreCurves:
    """Counts right and false detections above each threshold 0, 0.01, ..., 1.

    Args:
        images: from `judge_images`.
        numbers: K class numbers by category id.
    """
    histograms = np.zeros((2, len(numbers), len(_THRESHOLDS)), dtype=np.int64)
    objects = np.zeros(len(numbers), dtype=np.int64)
    for image in images:
        for found in image.detections:
            if found.error is not None and found.in_crowd:
                continue
            last = np.searchsorted(_THRESHOLDS, found.score, side="right") - 1
            if last >= 0:
                histograms[int(found.error is not None), numbers[found.category], last] += 1
        for there in image.objects:
            objects[numbers[there.category]] += 1
    right, false = histograms[..., ::-1].cumsum(-1)[..., ::-1]
    return ScoreCurves(_THRESHOLDS, right, false, objects)


Pairs = list[tuple[JudgedObject | None, JudgedDetection | None]]
"""Of an object and a detection of an image, None for the background."""


def pair_up(image: JudgedImage, api: COCO, task: str, score_threshold: float) -> Pairs:
    """Pairs of an object and a detection of an image, None for the background.

    An object belongs to the right detection of it. Other detections, best score first, are paired
    with the object of the largest IoU that is left, of whatever class, if it is at least 0.5. What
    remains is missed or false. Detections of crowds do not count.

    Args:
        image: from `judge_images`.
        api: the annotations, from `coco_api`.
        task: "bbox" or "segm".
        score_threshold: detections with a lower score do not count.
    """
    pairs: Pairs = []
    kept = [x for x in image.detections if x.score >= score_threshold]
    wrong = [x for x in kept if x.error is not None and not x.in_crowd]
    left = []
    for there in image.objects:
        if there.found_by is not None and there.found_by.score >= score_threshold:
            pairs.append((there, there.found_by))
        else:
            left.append(there)
    ious = region_ious([x.instance for x in wrong], [x.instance for x in left], task, api)
    free = np.ones(len(left), dtype=bool)
    for found, overlaps in zip(wrong, ious, strict=True):
        nearest = int(np.where(free, overlaps, -1).argmax()) if free.any() else None
        if nearest is not None and overlaps[nearest] >= IOU:
            free[nearest] = False
            pairs.append((left[nearest], found))
        else:
            pairs.append((None, found))
    return [*pairs, *((left[i], None) for i in np.flatnonzero(free))]


def confusions(images: Sequence[Pairs]) -> Counter[tuple[Id | None, Id | None]]:
    """Pairs of a true and a predicted class, None for the background.

    Args:
        images: the pairs of each, from `pair_up`.

    Returns:
        The number of each pair that occurs.
    """
    return Counter(
        (None if there is None else there.category, None if found is None else found.category)
        for pairs in images
        for there, found in pairs
    )
