"""LVIS evaluation of the data set that a config names, without the `lvis` package."""

import itertools
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

from vitadapter.data.coco_format import read_coco
from vitadapter.data.lvis import lvis_files
from vitadapter.evaluation.coco_annotations import coco_api, warn_of_uncounted
from vitadapter.evaluation.detection_analysis import write_analysis
from vitadapter.evaluation.detection_figures import DetectionFigures
from vitadapter.evaluation.lvis_rules import FREQUENCIES, evaluate_lvis, frequency_figures
from vitadapter.evaluation.results_file import Instance

__all__ = ["LVISEvaluator", "lvis_evaluator"]

logger = logging.getLogger(__name__)

_FREQUENCIES = tuple(FREQUENCIES.values())
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", *FREQUENCIES, "AR")


class LVISEvaluator(DatasetEvaluator):
    """As Detectron2's of this name, with the same figures under the same names.

    Detectron2's runs the `lvis` package, whose last release (0.5.3) fails on NumPy 1.24 or newer.
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
        """
        Args:
            json_file: annotations in LVIS's format.
            output_dir: folder for the predictions, tables and curves; None writes none.
            tasks: of "bbox" and "segm"; None takes what the model predicts.
            max_dets_per_image: of all categories together.
            plot_curves: whether precision-recall curves are drawn beside the tables.

        Raises:
            ValueError: a file of another format, an unknown task, or no detection per image.
        """
        unknown = set(tasks or ()) - {"bbox", "segm"}
        if unknown:
            raise ValueError(f"tasks must be of 'bbox' and 'segm', got {sorted(unknown)}")
        if max_dets_per_image < 1:
            raise ValueError(f"max_dets_per_image must be at least 1, got {max_dets_per_image}")
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
        told = [c for c in self._data.categories if "frequency" in c]
        unknown = [c for c in self._data.categories if c.get("frequency") not in _FREQUENCIES]
        if told and unknown:
            logger.warning(
                "%s: %d of %d categories have no frequency of 'r', 'c' or 'f', such as %s with %r: "
                "they count in none of %s",
                self._data.source,
                len(unknown),
                len(self._data.categories),
                unknown[0]["name"],
                unknown[0].get("frequency"),
                ", ".join(FREQUENCIES),
            )

    def reset(self) -> None:
        """Forgets all predictions."""
        self._results = []

    def process(
        self, inputs: Sequence[dict[str, object]], outputs: Sequence[dict[str, object]]
    ) -> None:
        """Takes the "instances" of some images; see `DatasetEvaluator`."""
        for single, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to(torch.device("cpu"))
            for result in instances_to_coco_json(instances, single["image_id"]):
                result["category_id"] = self._data.categories[result["category_id"]]["id"]
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
        tasks = self.tasks
        if tasks is None:
            masks = self._data.has_masks and any("segmentation" in r for r in results)
            tasks = ("bbox", "segm") if masks else ("bbox",)
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
    """The evaluator of a data set given by name or by its files.

    Args:
        name: a registered data set such as "lvis_v1_val"; not used when `json_file` is given.
        json_file: annotations in LVIS's format.
        image_root: folder of the images.
        output_dir, tasks, max_dets_per_image, plot_curves: as in :class:`LVISEvaluator`.

    Raises:
        ValueError: the data set does not exist, or an argument cannot be.
    """
    annotations, _ = lvis_files(name, json_file, image_root, role="test")
    return LVISEvaluator(
        annotations,
        output_dir,
        tasks=tasks,
        max_dets_per_image=max_dets_per_image,
        plot_curves=plot_curves,
    )
