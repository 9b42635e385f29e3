"""Precision and recall of detections by class and by object size: numbers, tables and curves."""

import contextlib
import csv
import io
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitadapter.data.coco import CocoData
from vitadapter.data.coco.json_entries import Id
from vitadapter.data.coco.results import Instance, coco_api, load_results
from vitadapter.visualization.figures import plot_precision_recall
from vitadapter.visualization.markdown import figure_cell, markdown_table

__all__ = [
    "COLUMNS",
    "SIZES",
    "DetectionFigures",
    "analyze_results",
    "check_arguments",
    "detections_of_task",
    "evaluate_detections",
    "tasks_of",
    "warn_of_uncounted",
    "write_analysis",
]

logger = logging.getLogger(__name__)

SIZES = ("all", "small", "medium", "large")
"""Object sizes in the order of pycocotools: all, up to 32 x 32 pixels, up to 96 x 96, larger."""

# IoU threshold (None for the mean over all of them) and index of the size.
_PRECISIONS: dict[str, tuple[float | None, int]] = {
    "AP": (None, 0),
    "AP50": (0.5, 0),
    "AP75": (0.75, 0),
    "APs": (None, 1),
    "APm": (None, 2),
    "APl": (None, 3),
}
COLUMNS = (*_PRECISIONS, "AR")
"""Figures of a class, in percent."""

# IoU thresholds of the curves that are drawn.
_CURVES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
_TASKS = ("bbox", "segm")


def _mean(values: np.ndarray) -> float:
    """The mean of classes that have objects. pycocotools marks others with -1."""
    values = values[values > -1]
    return float(values.mean()) if values.size else math.nan


@dataclass(frozen=True)
class DetectionFigures:
    """Figures of one task, for T IoU thresholds, R = 101 recalls, K classes and A = 4 sizes.

    They are -1 if there are no objects.
    """

    task: str
    """"bbox" or "segm"."""
    class_names: tuple[str, ...]
    counts: np.ndarray
    """(K,) numbers of objects, without crowds."""
    iou_thresholds: np.ndarray
    """(T,)"""
    recall_levels: np.ndarray
    """(R,)"""
    precision: np.ndarray
    """(T, R, K, A), the precision at each recall."""
    recall: np.ndarray
    """(T, K, A), the recall of all detections."""

    @classmethod
    def from_coco_eval(cls, coco_eval: COCOeval, class_names: Sequence[str]) -> "DetectionFigures":
        """Takes the figures from pycocotools.

        Args:
            coco_eval: after `accumulate`.
            class_names: in the ascending order of the category ids.

        Raises:
            ValueError: there are not as many names as categories.
        """
        params = coco_eval.params
        if len(class_names) != len(params.catIds):
            raise ValueError(
                f"class_names must name the {len(params.catIds)} categories, "
                f"got {len(class_names)} names"
            )
        images = set(params.imgIds)
        column = {category: k for k, category in enumerate(params.catIds)}
        objects = [
            column[annotation["category_id"]]
            for annotation in coco_eval.cocoGt.anns.values()
            if annotation["image_id"] in images and not annotation.get("iscrowd", 0)
        ]
        return cls(
            task=params.iouType,
            class_names=tuple(class_names),
            counts=np.bincount(np.array(objects, dtype=int), minlength=len(class_names)),
            iou_thresholds=np.asarray(params.iouThrs),
            recall_levels=np.asarray(params.recThrs),
            precision=coco_eval.eval["precision"][..., -1],
            recall=coco_eval.eval["recall"][..., -1],
        )

    def summary(self, classes: slice | int | np.ndarray = slice(None)) -> dict[str, float]:
        """The figures of `COLUMNS` in percent, NaN if there is no object.

        Args:
            classes: one class, or the classes over which to average.
        """
        figures = {
            name: _mean(self.precision[self._threshold(iou), :, classes, size])
            for name, (iou, size) in _PRECISIONS.items()
        }
        figures["AR"] = _mean(self.recall[:, classes, 0])
        return {name: 100 * value for name, value in figures.items()}

    def curve(self, iou: float, size: str = "all") -> np.ndarray:
        """Precision (R,) at each recall, averaged over the classes; NaN if there are no objects."""
        by_class = self.precision[self._threshold(iou), ..., SIZES.index(size)][0]
        there = by_class[:, (by_class > -1).all(0)]
        return there.mean(1) if there.size else np.full(len(by_class), math.nan)

    def panels(self) -> dict[str, dict[str, np.ndarray]]:
        """Curves by IoU threshold and by object size, for `plot_precision_recall`."""
        regions = {"bbox": "Boxes", "segm": "Masks"}[self.task]
        return {
            f"{regions} by IoU threshold": {f"IoU {iou:.2f}": self.curve(iou) for iou in _CURVES},
            "By size of the objects, at IoU 0.50": {s: self.curve(0.5, s) for s in SIZES},
        }

    def _threshold(self, iou: float | None) -> slice:
        if iou is None:
            return slice(None)
        (index,) = np.flatnonzero(np.isclose(self.iou_thresholds, iou))
        return slice(index, index + 1)

    def rows(self) -> list[tuple[str, int, dict[str, float]]]:
        """Name, number of objects and `summary` of all classes together, then of each class."""
        rows = [("all classes", int(self.counts.sum()), self.summary())]
        for index, name in enumerate(self.class_names):
            rows.append((name, int(self.counts[index]), self.summary(index)))
        return rows

    def table(self) -> str:
        """`rows` as an aligned Markdown table, with "-" if there is no object."""
        lines = [[self.task, "objects", *COLUMNS]]
        for name, count, figures in self.rows():
            lines.append([name, str(count), *(figure_cell(figures[c], 1) for c in COLUMNS)])
        return markdown_table(lines)


def _write_tables(tasks: Sequence[DetectionFigures], output_dir: str | Path) -> list[Path]:
    """Writes `per_class.md` and, with all digits, `per_class.csv`."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text, comma_separated = folder / "per_class.md", folder / "per_class.csv"
    text.write_text("\n\n".join(task.table() for task in tasks) + "\n", encoding="utf-8")
    with comma_separated.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "class", "objects", *COLUMNS])
        for task in tasks:
            for name, count, figures in task.rows():
                values = [figures[column] for column in COLUMNS]
                cells = ["" if math.isnan(value) else repr(value) for value in values]
                writer.writerow([task.task, name, count, *cells])
    return [text, comma_separated]


def check_arguments(tasks: Sequence[str] | None, max_dets_per_image: int) -> None:
    """Checks arguments of an evaluator.

    Raises:
        ValueError: one is invalid.
    """
    unknown = set(tasks or ()) - {*_TASKS}
    if unknown:
        raise ValueError(f"tasks must be some of 'bbox' and 'segm', got {sorted(unknown)}")
    if max_dets_per_image < 1:
        raise ValueError(f"max_dets_per_image must be at least 1, got {max_dets_per_image}")


def tasks_of(data: CocoData, detections: Sequence[Instance]) -> tuple[str, ...]:
    """The tasks that are predicted and for which there are annotations."""
    if not detections or not all("segmentation" in found for found in detections):
        return ("bbox",)
    if data.has_annotations and not data.has_masks:
        logger.warning("%s has no masks: only boxes are evaluated", data.source)
        return ("bbox",)
    return _TASKS


def warn_of_uncounted(api: COCO, max_dets_per_image: int, *, per_category: bool) -> None:
    """Warns if images have more objects than the number of detections that count.

    Args:
        api: the annotations.
        max_dets_per_image: number of detections that count.
        per_category: whether that many count for each category, as COCO's rules say.
    """
    counts = Counter(
        (annotation["image_id"], annotation["category_id"] if per_category else None)
        for annotation in api.anns.values()
        if not annotation["iscrowd"]
    )
    crowded = {key: count for key, count in counts.items() if count > max_dets_per_image}
    if crowded:
        (image, category), most = max(crowded.items(), key=lambda item: item[1])
        what = "objects" if category is None else f"objects of {api.cats[category]['name']!r}"
        logger.warning(
            "%d images have more than %d objects%s, such as %s with %d %s, but no more detections "
            "count: set dataloader.evaluator.max_dets_per_image=%d, and let the model "
            "predict as many",
            len({image for image, _ in crowded}),
            max_dets_per_image,
            " of a category" if per_category else "",
            api.imgs[image]["file_name"],
            most,
            what,
            most,
        )


def detections_of_task(detections: Sequence[Instance], task: str) -> list[Instance]:
    """Copies detections, because pycocotools changes them, with only the regions of one task.

    If a mask had a box, its size would be the area of the box.

    Args:
        detections: in COCO's results format.
        task: "bbox" or "segm".
    """
    other = {"bbox": "segmentation", "segm": "bbox"}[task]
    return [cast(Instance, {k: v for k, v in d.items() if k != other}) for d in detections]


def _loaded(annotations: COCO, results: list[Instance]) -> COCO:
    """The results, of which pycocotools itself needs at least one."""
    if results:
        return annotations.loadRes(results)
    nothing = COCO()
    nothing.dataset = {**annotations.dataset, "annotations": []}
    nothing.createIndex()
    return nothing


def evaluate_detections(
    annotations: COCO, detections: Sequence[Instance], task: str, *, max_dets_per_image: int = 100
) -> DetectionFigures:
    """Runs pycocotools.

    Args:
        annotations: from `coco_api`.
        detections: in COCO's results format.
        task: "bbox" or "segm".
        max_dets_per_image: number of detections of each category that count.
    """
    results = detections_of_task(detections, task)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        loaded = _loaded(annotations, results)
        categories = sorted(annotations.cats)
        images: dict[Id, set[Id]] = {category: set() for category in categories}
        for region in (*annotations.anns.values(), *loaded.anns.values()):
            images[region["category_id"]].add(region["image_id"])
        objects = Counter(a["category_id"] for a in annotations.anns.values() if not a["iscrowd"])
        # Category by category, in its own images: pycocotools looks at all pairs of a category and
        # an image, which takes hours if there are thousands of both.
        parts = []
        for category in categories:
            coco_eval = COCOeval(annotations, loaded, task)
            coco_eval.params.maxDets = [max_dets_per_image]
            coco_eval.params.catIds = [category]
            coco_eval.params.imgIds = sorted(images[category])
            coco_eval.evaluate()
            coco_eval.accumulate()
            parts.append(coco_eval)
    return DetectionFigures(
        task=task,
        class_names=tuple(annotations.cats[category]["name"] for category in categories),
        counts=np.array([objects[category] for category in categories]),
        iou_thresholds=np.asarray(parts[0].params.iouThrs),
        recall_levels=np.asarray(parts[0].params.recThrs),
        precision=np.concatenate([part.eval["precision"][..., -1] for part in parts], axis=2),
        recall=np.concatenate([part.eval["recall"][..., -1] for part in parts], axis=1),
    )


def write_analysis(
    tasks: Sequence[DetectionFigures], output_dir: str | Path, *, plot_curves: bool = True
) -> list[Path]:
    """Writes the tables and, for each task, `precision_recall_{task}.png`.

    Args:
        tasks: figures of each task.
        output_dir: folder for the files; it is made if necessary.
        plot_curves: whether to draw the curves.

    Returns:
        The files.
    """
    written = _write_tables(tasks, output_dir)
    for figures in tasks if plot_curves else ():
        written.append(Path(output_dir) / f"precision_recall_{figures.task}.png")
        plot_precision_recall(figures.recall_levels, figures.panels(), written[-1])
    return written


def analyze_results(
    json_file: str | Path,
    results_file: str | Path,
    output_dir: str | Path | None = None,
    *,
    max_dets_per_image: int = 100,
) -> tuple[list[DetectionFigures], list[Path]]:
    """Writes figures of boxes, and of masks if both files have them.

    Args:
        json_file: annotations in COCO's instances format.
        results_file: `coco_instances_results.json` of an evaluation.
        output_dir: folder for the files; None writes them next to the results.
        max_dets_per_image: as in `evaluate_detections`.

    Returns:
        The figures of each task, and the files.

    Raises:
        ValueError: a file cannot be read, or there are no annotations or no detections.
    """
    check_arguments(None, max_dets_per_image)
    images = load_results(json_file, results_file)
    detections = [found for by_image in images.predictions.values() for found in by_image]
    if not detections:
        raise ValueError(f"{results_file} must hold detections, got none")
    if not images.api.anns:
        raise ValueError(f"{json_file} must hold annotations, got none")
    tasks = tasks_of(images.data, detections)
    api = coco_api(images.data, masks="segm" in tasks)
    warn_of_uncounted(api, max_dets_per_image, per_category=True)
    figures = [
        evaluate_detections(api, detections, task, max_dets_per_image=max_dets_per_image)
        for task in tasks
    ]
    folder = Path(results_file).expanduser().parent if output_dir is None else Path(output_dir)
    return figures, write_analysis(figures, folder.expanduser())
