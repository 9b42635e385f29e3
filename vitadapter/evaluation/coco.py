"""COCO evaluation of the data set that a config names."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOeval_opt
from pycocotools.cocoeval import COCOeval

from vitadapter.data.coco import CocoData, read_registered, register_coco
from vitadapter.data.coco.results import coco_api
from vitadapter.evaluation.coco_submission import (
    check_algorithm,
    image_set_name,
    write_submission,
)
from vitadapter.evaluation.detection_analysis import (
    DetectionFigures,
    check_arguments,
    tasks_of,
    warn_of_uncounted,
    write_analysis,
)

__all__ = ["coco_evaluator"]

logger = logging.getLogger(__name__)


class _CheckedEvaluator(COCOEvaluator):
    """Detectron2's, of annotations that are checked, and with tables and curves of the results.

    On a file without annotations it writes what COCO's server takes.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None,
        output_dir: str | None,
        algorithm: str,
        max_dets_per_image: int,
        plot_curves: bool,
    ) -> None:
        self._data = read_registered(dataset_name, ground_truth=True)
        # Not Detectron2's own constructor, which gives an unchecked file to pycocotools.
        self._logger = logger
        self._metadata = _with_classes(MetadataCatalog.get(dataset_name), self._data)
        self._distributed = True
        self._cpu_device = torch.device("cpu")
        self._output_dir = output_dir
        self._tasks = tuple(tasks) if tasks else None
        self._use_fast_impl = COCOeval_opt is not COCOeval
        self._kpt_oks_sigmas = ()
        self._max_dets_per_image = [1, min(10, max_dets_per_image), max_dets_per_image]
        self._do_evaluation = self._data.has_annotations
        self._coco_api = coco_api(self._data)
        self._algorithm = algorithm
        self._plot_curves = plot_curves
        self._figures: list[DetectionFigures] = []
        if "segm" in (tasks or ()) and self._do_evaluation:
            coco_api(self._data, masks=True)  # refuses data without masks
        warn_of_uncounted(self._coco_api, max_dets_per_image, per_category=True)

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
        given_tasks = self._tasks
        if self._tasks is None:
            found = [result for each in predictions for result in each["instances"]]
            self._tasks = tasks_of(self._data, found)
        if self._do_evaluation:
            self._coco_api = coco_api(self._data, masks="segm" in self._tasks)
        super()._eval_predictions(predictions, img_ids)
        self._tasks = given_tasks
        if self._do_evaluation or not self._output_dir:
            return
        results_file = Path(self._output_dir, "coco_instances_results.json")
        archives = write_submission(
            json.loads(results_file.read_text()),
            self._output_dir,
            test_set=image_set_name(self._data.source),
            algorithm=self._algorithm,
        )
        logger.info("For COCO's evaluation server: %s", ", ".join(map(str, archives)))

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Detectron2 has accumulated here what would take minutes to do again."""
        class_names = self._data.class_names
        if coco_eval is not None:
            self._figures.append(DetectionFigures.from_coco_eval(coco_eval, class_names))
        return super()._derive_coco_results(coco_eval, iou_type, class_names)


def _with_classes(metadata: Metadata, data: CocoData) -> Metadata:
    """Metadata by which Detectron2 turns class numbers into category ids, and names them."""
    ids = metadata.get("thing_dataset_id_to_contiguous_id", data.dataset_ids)
    unknown = set(ids) - set(data.dataset_ids)
    if unknown:
        raise ValueError(
            f"{data.source} must have the categories that the metadata of '{metadata.name}' have, "
            f"but none has the id {min(unknown)!r}"
        )
    return Metadata(name=metadata.name, thing_dataset_id_to_contiguous_id=ids)


def coco_evaluator(
    name: str,
    json_file: str | None = None,
    image_root: str | None = None,
    output_dir: str | None = None,
    *,
    tasks: Sequence[str] | None = None,
    algorithm: str = "vitadapter",
    max_dets_per_image: int = 100,
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
        max_dets_per_image: detections of each category that are counted in an image, those of
            highest score; COCO's rules say 100. Images with more objects are told in a warning.
        plot_curves: whether precision-recall curves are drawn beside the tables.

    Raises:
        ValueError: the data set does not exist or contradicts itself, or an argument cannot be.
    """
    check_arguments(tasks, max_dets_per_image)
    check_algorithm(algorithm)
    registered = register_coco(name, json_file, image_root, role="test")
    return _CheckedEvaluator(
        registered, tasks, output_dir, algorithm, max_dets_per_image, plot_curves
    )
