"""LVIS's rules of evaluation (arXiv 1908.03195) on pycocotools.

They differ from COCO's in what counts as wrong. Only some categories were looked for in an image:
those that are annotated and those in its `neg_category_ids`. Detections of others are left out.
Of its `not_exhaustive_category_ids` some objects may lack an annotation: detections that match
none are no errors. An image has at most 300 detections over all categories. There are no crowds.
"""

import contextlib
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitadapter.evaluation.coco_annotations import detections_of_task
from vitadapter.evaluation.detection_figures import DetectionFigures
from vitadapter.evaluation.results_file import Instance

__all__ = ["FREQUENCIES", "evaluate_lvis", "frequency_figures"]

FREQUENCIES = {"APr": "r", "APc": "c", "APf": "f"}
"""Figure and "frequency" of its categories: in up to 10, up to 100, and more training images."""


def _limit_per_image(detections: Sequence[Instance], most: int) -> list[Instance]:
    """The detections of highest score of each image; the first ones of equals."""
    by_image: dict[int, list[Instance]] = defaultdict(list)
    for found in detections:
        by_image[found["image_id"]].append(found)
    best = (sorted(each, key=lambda found: -found["score"])[:most] for each in by_image.values())
    return [found for each in best for found in each]


def _federated(annotations: COCO, detections: Sequence[Instance]) -> list[Instance]:
    """The detections of categories that were looked for in their image."""
    looked_for = {
        image["id"]: set(image.get("neg_category_ids", ())) for image in annotations.imgs.values()
    }
    for annotation in annotations.anns.values():
        looked_for[annotation["image_id"]].add(annotation["category_id"])
    return [found for found in detections if found["category_id"] in looked_for[found["image_id"]]]


class _CategoryEval(COCOeval):
    """Of one category, on the images that have an object or a detection of it."""

    def evaluateImg(  # noqa: N802
        self,
        imgId: int,  # noqa: N803
        catId: int,  # noqa: N803
        aRng: Sequence[float],  # noqa: N803
        maxDet: int,  # noqa: N803
    ) -> dict[str, object] | None:
        """Detections that match nothing are no errors where objects may lack an annotation."""
        result = super().evaluateImg(imgId, catId, aRng, maxDet)
        exhaustive = catId not in self.cocoGt.imgs[imgId].get("not_exhaustive_category_ids", ())
        if result is None or exhaustive:
            return result
        unmatched = result["dtMatches"] == 0
        return {**result, "dtIgnore": np.logical_or(result["dtIgnore"], unmatched)}


def _evaluate_category(
    annotations: COCO, detections: COCO, category: int, task: str, max_dets: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, A) and recall (T, A)."""
    coco_eval = _CategoryEval(annotations, detections, task)
    params = coco_eval.params
    params.catIds = [category]
    images = {*annotations.catToImgs[category], *detections.catToImgs[category]}
    if not images:
        shape = len(params.iouThrs), len(params.recThrs), len(params.areaRng)
        return np.full(shape, -1.0), np.full(shape[::2], -1.0)
    params.imgIds = sorted(images)
    params.maxDets = [max_dets]
    coco_eval.evaluate()
    coco_eval.accumulate()
    return coco_eval.eval["precision"][:, :, 0, :, 0], coco_eval.eval["recall"][:, 0, :, 0]


def evaluate_lvis(
    annotations: COCO, detections: Sequence[Instance], task: str, *, max_dets_per_image: int = 300
) -> DetectionFigures:
    """Precision and recall by category.

    Args:
        annotations: in LVIS's format, with "iscrowd" (0).
        detections: at least one, in COCO's results format.
        task: "bbox" or "segm".
        max_dets_per_image: of all categories together.
    """
    detections = detections_of_task(detections, task)
    kept = _federated(annotations, _limit_per_image(detections, max_dets_per_image))
    categories = sorted(annotations.getCatIds())
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        found = annotations.loadRes(kept) if kept else COCO()
        if not kept:
            found.dataset = {"images": [], "annotations": [], "categories": []}
            found.createIndex()
        # One category at a time: of LVIS's 20 thousand images each has but a few of 1203.
        by_category = [
            _evaluate_category(annotations, found, category, task, max_dets_per_image)
            for category in categories
        ]
    params = COCOeval(iouType=task).params
    counts = Counter(annotation["category_id"] for annotation in annotations.anns.values())
    return DetectionFigures(
        task=task,
        class_names=tuple(c["name"] for c in annotations.loadCats(categories)),
        counts=np.array([counts[category] for category in categories]),
        iou_thresholds=params.iouThrs,
        recall_levels=params.recThrs,
        precision=np.stack([precision for precision, _ in by_category], axis=2),
        recall=np.stack([recall for _, recall in by_category], axis=1),
    )


def frequency_figures(
    figures: DetectionFigures, categories: Sequence[Mapping[str, object]]
) -> dict[str, float]:
    """AP in percent of rare, common and frequent categories; none where they do not tell.

    Args:
        figures: of all categories.
        categories: in the order of the figures.
    """
    groups = [category.get("frequency") for category in categories]
    return {
        name: figures.summary(np.flatnonzero([group == frequency for group in groups]))["AP"]
        for name, frequency in FREQUENCIES.items()
        if any(group in FREQUENCIES.values() for group in groups)
    }
