"""COCO evaluation of the data set that a config names."""

import contextlib
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from detectron2.evaluation import COCOEvaluator
from pycocotools.cocoeval import COCOeval

from vitadapter.data.coco import register_coco
from vitadapter.evaluation.coco_annotations import complete_annotations
from vitadapter.evaluation.coco_submission import (
    check_algorithm,
    image_set_name,
    write_submission,
)
from vitadapter.evaluation.detection_analysis import write_analysis
from vitadapter.evaluation.detection_figures import DetectionFigures

__all__ = ["coco_evaluator"]

logger = logging.getLogger(__name__)


class _CompletingEvaluator(COCOEvaluator):
    """Detectron2's, with the annotations completed, and with tables and curves of the results.

    On a file without annotations it writes what COCO's server takes.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: tuple[str, ...] | None,
        output_dir: str | None,
        algorithm: str,
        plot_curves: bool,
    ) -> None:
        super().__init__(dataset_name, tasks=tasks, output_dir=output_dir)
        self._algorithm = algorithm
        self._plot_curves = plot_curves
        self._figures: list[DetectionFigures] = []
        content = self._coco_api.dataset
        if "annotations" in content:
            masks = tasks is None or "segm" in tasks
            content["annotations"] = complete_annotations(content["annotations"], masks=masks)
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
                self._coco_api.createIndex()
        if "thing_dataset_id_to_contiguous_id" not in self._metadata.as_dict():
            # Detectron2 leaves it to the loader of the data, and without it writes wrong ids.
            categories = self._coco_api.loadCats(sorted(self._coco_api.getCatIds()))
            self._metadata.set(
                thing_classes=[category["name"] for category in categories],
                thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
            )

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """As Detectron2's; the tables and curves lie next to the results."""
        self._figures = []
        results = super().evaluate(img_ids)
        if self._figures and self._output_dir:
            write_analysis(self._figures, self._output_dir, plot_curves=self._plot_curves)
        return results

    def _eval_predictions(
        self, predictions: Sequence[dict[str, object]], img_ids: Sequence[int] | None = None
    ) -> None:
        """Detectron2 has written the results, with the categories of the data set."""
        super()._eval_predictions(predictions, img_ids)
        if self._do_evaluation or not self._output_dir:
            return
        results_file = Path(self._output_dir, "coco_instances_results.json")
        archives = write_submission(
            json.loads(results_file.read_text()),
            self._output_dir,
            test_set=image_set_name(self._metadata.json_file),
            algorithm=self._algorithm,
        )
        logger.info("For COCO's evaluation server: %s", ", ".join(map(str, archives)))

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Detectron2 has accumulated here what would take minutes to do again."""
        if coco_eval is not None and class_names is not None:
            self._figures.append(DetectionFigures.from_coco_eval(coco_eval, class_names))
        return super()._derive_coco_results(coco_eval, iou_type, class_names)


def coco_evaluator(
    name: str,
    json_file: str | None = None,
    image_root: str | None = None,
    output_dir: str | None = None,
    *,
    tasks: Sequence[str] | None = None,
    algorithm: str = "vitadapter",
    plot_curves: bool = True,
) -> COCOEvaluator:
    """Detectron2's COCO evaluator for a data set given by name or by its files.

    Args:
        name: a registered data set; not used when `json_file` is given.
        json_file: annotations in COCO's instances format.
        image_root: folder of the images.
        output_dir: folder for the predictions; None writes none.
        tasks: of "bbox" and "segm"; None takes what the model predicts.
        algorithm: name of the entry, in the files for COCO's server that are written where the
            data set has no annotations.
        plot_curves: whether precision-recall curves are drawn beside the tables.

    Raises:
        ValueError: the data set does not exist, a task is unknown, or a name is not one.
    """
    unknown = set(tasks or ()) - {"bbox", "segm"}
    if unknown:
        raise ValueError(f"tasks must be of 'bbox' and 'segm', got {sorted(unknown)}")
    check_algorithm(algorithm)
    registered = register_coco(name, json_file, image_root, role="test")
    return _CompletingEvaluator(
        registered, tuple(tasks) if tasks else None, output_dir, algorithm, plot_curves
    )
