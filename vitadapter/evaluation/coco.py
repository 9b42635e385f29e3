"""COCO evaluation of the data set that a config names."""

import json
import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOeval_opt
from pycocotools.cocoeval import COCOeval

from vitadapter.data.coco import CocoData, read_registered, register_coco
from vitadapter.data.coco.results import coco_api
from vitadapter.evaluation.detection_analysis import (
    DetectionFigures,
    check_arguments,
    tasks_of,
    warn_of_uncounted,
    write_analysis,
)

__all__ = ["coco_evaluator", "image_set_name", "write_submission"]

logger = logging.getLogger(__name__)

# Of submissions to COCO's evaluation server.
_ALGORITHM = re.compile(r"[\w.+-]+", re.ASCII)
# COCO recommends tenths of a pixel, to keep files small; a hundredth costs no AP for sure.
_BOX_DIGITS = 2
_SCORE_DIGITS = 6
_REGIONS = {"bbox": "bbox", "segm": "segmentation"}


def _check_algorithm(algorithm: str) -> None:
    """
    Raises:
        ValueError: not a name that the server's file names can hold.
    """
    if not _ALGORITHM.fullmatch(algorithm):
        raise ValueError(
            "algorithm must be of letters, digits and _ . + - as a part of a file name, "
            f"got {algorithm!r}"
        )


def image_set_name(json_file: str | Path) -> str:
    """What COCO calls the images of a file: "test-dev2017" of "image_info_test-dev2017.json"."""
    return Path(json_file).stem.removeprefix("image_info_")


def _entry(result: Mapping[str, object], task: str) -> dict[str, object]:
    region = result[_REGIONS[task]]
    if task == "bbox":
        region = [round(value, _BOX_DIGITS) for value in region]
    return {
        "image_id": result["image_id"],
        "category_id": result["category_id"],
        _REGIONS[task]: region,
        "score": round(result["score"], _SCORE_DIGITS),
    }


def write_submission(
    results: Sequence[Mapping[str, object]],
    output_dir: str | Path,
    *,
    test_set: str,
    algorithm: str,
) -> list[Path]:
    """Writes `submission_{bbox,segm}/detections_{test_set}_{algorithm}_results.{json,zip}`.

    Boxes and masks are two uploads: where a mask has a box, the server's tools take the size of
    the object from the box.

    Args:
        results: in COCO's results format, with masks (compressed RLE) in all of them or in none.
        output_dir: folder that gets a folder for each task.
        test_set: such as "test-dev2017".
        algorithm: name of the entry.

    Returns:
        list[Path]: the zip files to upload.

    Raises:
        ValueError: a name that the server's file names cannot hold.
    """
    _check_algorithm(algorithm)
    has_masks = len(results) > 0 and all("segmentation" in result for result in results)
    archives = []
    for task in ("bbox", "segm") if has_masks else ("bbox",):
        folder = Path(output_dir) / f"submission_{task}"
        folder.mkdir(parents=True, exist_ok=True)
        json_file = folder / f"detections_{test_set}_{algorithm}_results.json"
        entries = [_entry(result, task) for result in results]
        json_file.write_text(json.dumps(entries, separators=(",", ":")))
        archives.append(json_file.with_suffix(".zip"))
        with zipfile.ZipFile(archives[-1], "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(json_file, json_file.name)
    return archives


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
    _check_algorithm(algorithm)
    registered = register_coco(name, json_file, image_root, role="test")
    return _CheckedEvaluator(
        registered, tasks, output_dir, algorithm, max_dets_per_image, plot_curves
    )
