"""COCO evaluation of the data set that a config names."""

import json
import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import torch
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOeval_opt, COCOevalMaxDets
from detectron2.structures import Instances
from pycocotools.cocoeval import COCOeval

from vitadapter.data.coco import CocoData, read_registered, register_coco
from vitadapter.data.coco.results import Instance, coco_api, to_results
from vitadapter.data.dataset_source import Record
from vitadapter.evaluation.detection_analysis import (
    DetectionFigures,
    check_arguments,
    detections_of_task,
    tasks_of,
    warn_of_uncounted,
    write_analysis,
)

__all__ = ["coco_evaluator", "image_set_name", "write_submission"]

logger = logging.getLogger(__name__)

# For submissions to COCO's evaluation server.
_ALGORITHM = re.compile(r"[\w.+-]+", re.ASCII)
# COCO recommends tenths of a pixel, to keep files small. Hundredths certainly cost no AP.
_BOX_DIGITS = 2
_SCORE_DIGITS = 6


class _Predictions(TypedDict):
    """What Detectron2's evaluator keeps of an image."""

    image_id: int | str
    instances: list[Instance]


def _check_algorithm(algorithm: str) -> None:
    if not _ALGORITHM.fullmatch(algorithm):
        raise ValueError(
            "algorithm may only have letters, digits and _ . + - to be part of a file name, "
            f"got {algorithm!r}"
        )


def image_set_name(json_file: str | Path) -> str:
    """What COCO calls the images of a file: "test-dev2017" of "image_info_test-dev2017.json"."""
    return Path(json_file).stem.removeprefix("image_info_")


def _entry(result: Instance, task: str) -> Instance:
    entry: Instance = {
        "image_id": result["image_id"],
        "category_id": result["category_id"],
        "score": round(result["score"], _SCORE_DIGITS),
    }
    if task == "bbox":
        entry["bbox"] = [round(value, _BOX_DIGITS) for value in result["bbox"]]
    else:
        entry["segmentation"] = result["segmentation"]
    return entry


def write_submission(
    results: Sequence[Instance],
    output_dir: str | Path,
    *,
    test_set: str,
    algorithm: str,
) -> list[Path]:
    """Writes `submission_{bbox,segm}/detections_{test_set}_{algorithm}_results.{json,zip}`.

    Boxes and masks are separate uploads, because the server's tools take the size of an object from
    its box if the mask has one.

    Args:
        results: in COCO's results format, with masks (compressed RLE) in all of them or in none.
        output_dir: folder in which a folder for each task is made.
        test_set: such as "test-dev2017".
        algorithm: name of the entry.

    Returns:
        The zip files to upload.

    Raises:
        ValueError: the name of the entry cannot be part of a file name.
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
    """Detectron2's evaluator with checked annotations, and tables and curves of the results.

    For a file without annotations, it writes what COCO's server takes.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None,
        output_dir: str | None,
        algorithm: str,
        max_dets_per_image: int,
        plot_curves: bool,
        cocoeval: type[COCOeval],
    ) -> None:
        self._data = read_registered(dataset_name, ground_truth=True)
        # Not Detectron2's own constructor, which passes an unchecked file to pycocotools.
        self._logger = logger
        self._metadata = _with_classes(MetadataCatalog.get(dataset_name), self._data)
        self._distributed = True
        self._cpu_device = torch.device("cpu")
        self._output_dir = output_dir
        self._tasks = tuple(tasks) if tasks else None
        # Not in configs, which could not be read where Detectron2 has not been compiled.
        self._cocoeval = COCOeval_opt if cocoeval is COCOeval else cocoeval
        self._kpt_oks_sigmas = ()
        self._max_dets_per_image = [1, min(10, max_dets_per_image), max_dets_per_image]
        self._do_evaluation = self._data.has_annotations
        self._coco_api = coco_api(self._data)
        if self._do_evaluation:
            # Refuses now, and not after training, a class whose package is missing.
            self._cocoeval(self._coco_api, self._coco_api, "bbox")
        self._algorithm = algorithm
        self._plot_curves = plot_curves
        self._figures: list[DetectionFigures] = []
        if "segm" in (tasks or ()) and self._do_evaluation:
            coco_api(self._data, masks=True)  # refuses data without masks
        warn_of_uncounted(self._coco_api, max_dets_per_image, per_category=True)

    def process(self, inputs: Sequence[Record], outputs: Sequence[Mapping[str, Instances]]) -> None:
        """Takes the "instances" of some images; see `DatasetEvaluator`."""
        for record, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to(self._cpu_device)
            image = record["image_id"]
            results = to_results(instances, image)
            self._predictions.append(_Predictions(image_id=image, instances=results))

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """Like Detectron2's, and writes tables and curves next to the results."""
        self._figures = []
        results = super().evaluate(img_ids)
        if self._figures and self._output_dir:
            write_analysis(self._figures, self._output_dir, plot_curves=self._plot_curves)
        return results

    def _eval_predictions(
        self, predictions: Sequence[_Predictions], img_ids: Sequence[int] | None = None
    ) -> None:
        """Evaluates what was predicted, or writes a submission if there are no annotations."""
        results = [result for each in predictions for result in each["instances"]]
        tasks = self._tasks or tasks_of(self._data, results)
        ids = {
            number: id_ for id_, number in self._metadata.thing_dataset_id_to_contiguous_id.items()
        }
        for result in results:
            if result["category_id"] not in ids:
                raise ValueError(
                    f"{self._data.source} has {len(ids)} categories, but the model predicted class "
                    f"number {result['category_id']}"
                )
            result["category_id"] = ids[result["category_id"]]
        if self._output_dir:
            self._write(results, Path(self._output_dir))
        if self._do_evaluation:
            self._coco_api = coco_api(self._data, masks="segm" in tasks)
            for task in sorted(tasks):
                coco_eval = self._evaluated(results, task, img_ids) if results else None
                self._results[task] = self._derive_coco_results(coco_eval, task)

    def _evaluated(
        self, results: Sequence[Instance], task: str, img_ids: Sequence[int] | None
    ) -> COCOeval:
        loaded = self._coco_api.loadRes(detections_of_task(results, task))
        coco_eval = self._cocoeval(self._coco_api, loaded, task)
        logger.info("Evaluating %s with %s ...", task, type(coco_eval).__name__)
        coco_eval.params.maxDets = self._max_dets_per_image
        if img_ids is not None:
            coco_eval.params.imgIds = img_ids
        coco_eval.evaluate()
        coco_eval.accumulate()
        # pycocotools' own summary gives AP for 100 detections alone.
        COCOevalMaxDets.summarize(coco_eval)
        return coco_eval

    def _write(self, results: Sequence[Instance], folder: Path) -> None:
        """Writes the results, and a submission of them if there are no annotations."""
        (folder / "coco_instances_results.json").write_text(json.dumps(results))
        if self._do_evaluation:
            return
        archives = write_submission(
            results,
            folder,
            test_set=image_set_name(self._data.source),
            algorithm=self._algorithm,
        )
        logger.info("For COCO's evaluation server: %s", ", ".join(map(str, archives)))

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Keeps what Detectron2 has accumulated, which would take minutes to repeat."""
        class_names = self._data.class_names
        if coco_eval is not None:
            self._figures.append(DetectionFigures.from_coco_eval(coco_eval, class_names))
        return super()._derive_coco_results(coco_eval, iou_type, class_names)


def _with_classes(metadata: Metadata, data: CocoData) -> Metadata:
    """Metadata with which Detectron2 converts class numbers to category ids."""
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
    cocoeval: type[COCOeval] = COCOeval,
) -> COCOEvaluator:
    """Detectron2's COCO evaluator for a data set that is given by name or by its files.

    Args:
        name: a registered data set; not used if `json_file` is given.
        json_file: annotations in COCO's instances format.
        image_root: folder of the images.
        output_dir: folder for the predictions; None writes none.
        tasks: some of "bbox" and "segm"; None takes what the model predicts.
        algorithm: name of the entry in the files for COCO's server, which are written if the data
            set has no annotations.
        max_dets_per_image: number of detections of each category that count in an image, those
            with the highest scores. COCO's rules say 100. Images with more objects cause a warning.
        plot_curves: whether precision-recall curves are drawn as well as tables.
        cocoeval: what computes the metrics, such as
            `vitadapter.evaluation.hotcoco.HotCocoEval`, which is faster. pycocotools' own stands
            for Detectron2's faster one if that has been compiled.

    Raises:
        TypeError: `cocoeval` is no class like pycocotools' `COCOeval`.
        ValueError: the data set does not exist or contradicts itself, or an argument is invalid.
    """
    if not (isinstance(cocoeval, type) and issubclass(cocoeval, COCOeval)):
        raise TypeError(f"cocoeval must be pycocotools' COCOeval or a subclass, got {cocoeval!r}")
    check_arguments(tasks, max_dets_per_image)
    _check_algorithm(algorithm)
    registered = register_coco(name, json_file, image_root, role="test")
    return _CheckedEvaluator(
        registered, tasks, output_dir, algorithm, max_dets_per_image, plot_curves, cocoeval
    )
