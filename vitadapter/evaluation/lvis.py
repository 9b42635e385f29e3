"""LVIS evaluation (arXiv 1908.03195) on pycocotools, without the `lvis` package.

LVIS's rules differ from COCO's in what counts as an error. An image was searched only for some
categories: those that are annotated and those in its `neg_category_ids`. Detections of others are
left out. Some objects of its `not_exhaustive_category_ids` may lack an annotation, so detections of
these that match nothing are not errors. At most 300 detections count in an image, over all
categories together. There are no crowds.
"""

import contextlib
import io
import itertools
import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitadapter.data.coco import read_coco
from vitadapter.data.coco.annotations import Category
from vitadapter.data.coco.results import Instance, coco_api, to_results
from vitadapter.data.dataset_source import Record
from vitadapter.data.lvis import lvis_files
from vitadapter.evaluation.detection_analysis import (
    DetectionFigures,
    check_arguments,
    detections_of_task,
    tasks_of,
    warn_of_uncounted,
    write_analysis,
)

__all__ = ["LVISEvaluator", "evaluate_lvis", "frequency_figures", "lvis_evaluator"]

logger = logging.getLogger(__name__)

_FREQUENCIES = {"APr": "r", "APc": "c", "APf": "f"}
"""Figure and "frequency" of its categories, which are in up to 10, up to 100, or more images."""
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", *_FREQUENCIES, "AR")


def _limit_per_image(detections: Sequence[Instance], most: int) -> list[Instance]:
    """The detections with the highest scores in each image; of equal scores, the first ones."""
    by_image: dict[int | str, list[Instance]] = defaultdict(list)
    for found in detections:
        by_image[found["image_id"]].append(found)
    best = (sorted(each, key=lambda found: -found["score"])[:most] for each in by_image.values())
    return [found for each in best for found in each]


def _federated(annotations: COCO, detections: Sequence[Instance]) -> list[Instance]:
    """The detections of categories for which their image was searched."""
    searched = {
        image["id"]: set(image.get("neg_category_ids", ())) for image in annotations.imgs.values()
    }
    for annotation in annotations.anns.values():
        searched[annotation["image_id"]].add(annotation["category_id"])
    return [found for found in detections if found["category_id"] in searched[found["image_id"]]]


class _CategoryEval(COCOeval):
    """Evaluates one category at a time, on the images that have an object or a detection of it.

    Each of LVIS's 20 thousand images has only a few of its 1203 categories.
    """

    def evaluateImg(  # noqa: N802
        self,
        imgId: int,  # noqa: N803
        catId: int,  # noqa: N803
        aRng: Sequence[float],  # noqa: N803
        maxDet: int,  # noqa: N803
    ) -> dict[str, object] | None:
        """Ignores detections that match nothing if objects may lack an annotation."""
        result = super().evaluateImg(imgId, catId, aRng, maxDet)
        exhaustive = catId not in self.cocoGt.imgs[imgId].get("not_exhaustive_category_ids", ())
        if result is None or exhaustive:
            return result
        unmatched = result["dtMatches"] == 0
        return {**result, "dtIgnore": np.logical_or(result["dtIgnore"], unmatched)}

    def figures_of(self, category: int) -> tuple[np.ndarray, np.ndarray]:
        """Precision (T, R, A) and recall (T, A) of a category."""
        images = {*self.cocoGt.catToImgs[category], *self.cocoDt.catToImgs[category]}
        self.params.catIds = [category]
        # If there is nothing of a category, any image shows it.
        self.params.imgIds = sorted(images) or self.cocoGt.getImgIds()[:1]
        self.evaluate()
        self.accumulate()
        return self.eval["precision"][:, :, 0, :, 0], self.eval["recall"][:, 0, :, 0]


def evaluate_lvis(
    annotations: COCO, detections: Sequence[Instance], task: str, *, max_dets_per_image: int = 300
) -> DetectionFigures:
    """Computes precision and recall of each category.

    Args:
        annotations: in LVIS's format, with "iscrowd" (0).
        detections: at least one, in COCO's results format.
        task: "bbox" or "segm".
        max_dets_per_image: number of detections that count, of all categories together.
    """
    detections = detections_of_task(detections, task)
    kept = _federated(annotations, _limit_per_image(detections, max_dets_per_image))
    categories = sorted(annotations.getCatIds())
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        found = annotations.loadRes(kept) if kept else COCO()
        if not kept:
            found.dataset = {"images": [], "annotations": [], "categories": []}
            found.createIndex()
        coco_eval = _CategoryEval(annotations, found, task)
        coco_eval.params.maxDets = [max_dets_per_image]
        by_category = [coco_eval.figures_of(category) for category in categories]
    counts = Counter(annotation["category_id"] for annotation in annotations.anns.values())
    return DetectionFigures(
        task=task,
        class_names=tuple(c["name"] for c in annotations.loadCats(categories)),
        counts=np.array([counts[category] for category in categories]),
        iou_thresholds=coco_eval.params.iouThrs,
        recall_levels=coco_eval.params.recThrs,
        precision=np.stack([precision for precision, _ in by_category], axis=2),
        recall=np.stack([recall for _, recall in by_category], axis=1),
    )


def frequency_figures(
    figures: DetectionFigures, categories: Sequence[Category]
) -> dict[str, float]:
    """AP in percent of rare, common and frequent categories; empty if these are not known.

    Args:
        figures: of all categories.
        categories: in the order of the figures.
    """
    groups = [category.get("frequency") for category in categories]
    return {
        name: figures.summary(np.flatnonzero([group == frequency for group in groups]))["AP"]
        for name, frequency in _FREQUENCIES.items()
        if any(group in _FREQUENCIES.values() for group in groups)
    }


class LVISEvaluator(DatasetEvaluator):
    """Computes the same figures as Detectron2's evaluator of this name.

    Detectron2's runs the `lvis` package, whose last release (0.5.3) fails with NumPy 1.24 or newer.

    Args:
        json_file: annotations in LVIS's format.
        output_dir: folder for the predictions, tables and curves; None writes none.
        tasks: some of "bbox" and "segm"; None takes what the model predicts.
        max_dets_per_image: number of detections that count, of all categories together.
        plot_curves: whether precision-recall curves are drawn as well as tables.

    Raises:
        ValueError: the file has the wrong format, a task is unknown, or `max_dets_per_image`
            is not positive.
    """

    def __init__(
        self,
        json_file: str,
        output_dir: str | None = None,
        *,
        tasks: Sequence[str] | None = None,
        max_dets_per_image: int = 300,
        plot_curves: bool = True,
    ) -> None:
        check_arguments(tasks, max_dets_per_image)
        self.tasks = tuple(tasks) if tasks else None
        self.max_dets_per_image = max_dets_per_image
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._plot_curves = plot_curves
        self._data = read_coco(json_file)
        if "segm" in (tasks or ()) and self._data.has_annotations:
            coco_api(self._data, masks=True)  # refuses data without masks
        warn_of_uncounted(coco_api(self._data), max_dets_per_image, per_category=False)
        self._warn_of_frequencies()
        self._results: list[Instance] = []

    def _warn_of_frequencies(self) -> None:
        known = [c for c in self._data.categories if "frequency" in c]
        unknown = [
            c for c in self._data.categories if c.get("frequency") not in _FREQUENCIES.values()
        ]
        if known and unknown:
            logger.warning(
                "%s: %d of %d categories have no frequency of 'r', 'c' or 'f', such as %s with %r: "
                "they count in none of %s",
                self._data.source,
                len(unknown),
                len(self._data.categories),
                unknown[0]["name"],
                unknown[0].get("frequency"),
                ", ".join(_FREQUENCIES),
            )

    def reset(self) -> None:
        """Forgets all predictions."""
        self._results = []

    def process(self, inputs: Sequence[Record], outputs: Sequence[Mapping[str, Instances]]) -> None:
        """Takes the "instances" of some images; see `DatasetEvaluator`."""
        for single, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to(torch.device("cpu"))
            for result in to_results(instances, single["image_id"]):
                result["category_id"] = self._data.categories[int(result["category_id"])]["id"]
                self._results.append(result)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Figures in percent by task; empty without annotations, and in other processes.

        With an output folder, the predictions are in its `lvis_instances_results.json`.
        """
        comm.synchronize()
        results = list(itertools.chain(*comm.gather(self._results, dst=0)))
        if not comm.is_main_process():
            return {}
        if self._output_dir is not None:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            (self._output_dir / "lvis_instances_results.json").write_text(json.dumps(results))
        if not any(record.get("annotations") for record in self._data.records):
            logger.warning("no annotations: predictions are written, no AP is computed")
            return {}
        tasks = self.tasks or tasks_of(self._data, results)
        if not results:
            logger.warning("the model predicted nothing")
            return {task: dict.fromkeys(_METRICS, math.nan) for task in tasks}
        api = coco_api(self._data, masks="segm" in tasks)
        figures = [
            evaluate_lvis(api, results, task, max_dets_per_image=self.max_dets_per_image)
            for task in tasks
        ]
        if self._output_dir is not None:
            write_analysis(figures, self._output_dir, plot_curves=self._plot_curves)
        return {each.task: self._metrics(each) for each in figures}

    def _metrics(self, figures: DetectionFigures) -> dict[str, float]:
        summary = {**figures.summary(), **frequency_figures(figures, self._data.categories)}
        metrics = {name: summary[name] for name in _METRICS if name in summary}
        logger.info("Evaluation results for %s:\n%s", figures.task, create_small_table(metrics))
        return metrics


def lvis_evaluator(
    name: str,
    json_file: str | None = None,
    image_root: str | None = None,
    output_dir: str | None = None,
    *,
    tasks: Sequence[str] | None = None,
    max_dets_per_image: int = 300,
    plot_curves: bool = True,
) -> LVISEvaluator:
    """The evaluator for a data set that is given by name or by its files.

    Args:
        name: a registered data set such as "lvis_v1_val"; not used if `json_file` is given.
        json_file: annotations in LVIS's format.
        image_root: folder of the images.
        output_dir, tasks, max_dets_per_image, plot_curves: as in `LVISEvaluator`.

    Raises:
        ValueError: the data set does not exist, or an argument is invalid.
    """
    annotations, _ = lvis_files(name, json_file, image_root, role="test")
    return LVISEvaluator(
        annotations,
        output_dir,
        tasks=tasks,
        max_dets_per_image=max_dets_per_image,
        plot_curves=plot_curves,
    )
