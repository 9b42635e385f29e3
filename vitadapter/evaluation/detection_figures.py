"""Precision and recall of detections by class and size of the objects, as tables."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.cocoeval import COCOeval

from vitadapter.evaluation.markdown import markdown_table

__all__ = ["COLUMNS", "SIZES", "DetectionFigures", "write_tables"]

SIZES = ("all", "small", "medium", "large")
"""Object sizes in the order of pycocotools: up to 32 x 32 pixels, up to 96 x 96, and above."""

# IoU threshold (None for the mean over all of them) and index of the size.
_PRECISIONS = {
    "AP": (None, 0),
    "AP50": (0.5, 0),
    "AP75": (0.75, 0),
    "APs": (None, 1),
    "APm": (None, 2),
    "APl": (None, 3),
}
COLUMNS = (*_PRECISIONS, "AR")
"""Figures of a class, in percent."""


def _mean(values: np.ndarray) -> float:
    """Mean of what is there: pycocotools marks a class without objects by -1."""
    values = values[values > -1]
    return float(values.mean()) if values.size else math.nan


@dataclass(frozen=True)
class DetectionFigures:
    """Of one task; T IoU thresholds, R = 101 recalls, K classes, A = 4 sizes; -1 for no objects."""

    task: str
    """"bbox" or "segm"."""
    class_names: tuple[str, ...]
    counts: np.ndarray
    """(K,) objects, crowds left out."""
    iou_thresholds: np.ndarray
    """(T,)"""
    recall_levels: np.ndarray
    """(R,)"""
    precision: np.ndarray
    """(T, R, K, A) at each recall."""
    recall: np.ndarray
    """(T, K, A) of all detections."""

    @classmethod
    def from_coco_eval(cls, coco_eval: COCOeval, class_names: Sequence[str]) -> "DetectionFigures":
        """
        Args:
            coco_eval: has accumulated.
            class_names: in the ascending order of the category ids.

        Raises:
            ValueError: another number of names than of categories.
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

    def summary(self, classes: slice | int = slice(None)) -> dict[str, float]:
        """The figures of `COLUMNS` in percent, NaN where there is no object.

        Args:
            classes: one class, or those of which the mean is taken.
        """
        figures = {
            name: _mean(self.precision[self._threshold(iou), :, classes, size])
            for name, (iou, size) in _PRECISIONS.items()
        }
        figures["AR"] = _mean(self.recall[:, classes, 0])
        return {name: 100 * value for name, value in figures.items()}

    def curve(self, iou: float, size: str = "all") -> np.ndarray:
        """Precision (R,) at each recall, averaged over the classes; NaN without objects."""
        by_class = self.precision[self._threshold(iou), ..., SIZES.index(size)][0]
        there = by_class[:, (by_class > -1).all(0)]
        return there.mean(1) if there.size else np.full(len(by_class), math.nan)

    def _threshold(self, iou: float | None) -> slice:
        if iou is None:
            return slice(None)
        (index,) = np.flatnonzero(np.isclose(self.iou_thresholds, iou))
        return slice(index, index + 1)

    def rows(self) -> list[tuple[str, int, dict[str, float]]]:
        """Name, number of objects and `summary`, of all classes together and of each."""
        rows = [("all classes", int(self.counts.sum()), self.summary())]
        for index, name in enumerate(self.class_names):
            rows.append((name, int(self.counts[index]), self.summary(index)))
        return rows

    def table(self) -> str:
        """`rows` as Markdown, aligned; "-" where there is no object."""
        lines = [[self.task, "objects", *COLUMNS]]
        for name, count, figures in self.rows():
            cells = [figures[column] for column in COLUMNS]
            texts = ["-" if math.isnan(value) else f"{value:.1f}" for value in cells]
            lines.append([name, str(count), *texts])
        return markdown_table(lines)


def write_tables(tasks: Sequence[DetectionFigures], output_dir: str | Path) -> list[Path]:
    """Writes `per_class.md` and, with all digits, `per_class.csv`.

    Args:
        tasks: figures of each task.
        output_dir: folder for the files; is made.

    Returns:
        list[Path]: the files.
    """
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
