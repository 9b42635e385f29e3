"""Tables and curves of an evaluation, from the files that it has left."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitadapter.evaluation.coco_annotations import complete_annotations, detections_of_task
from vitadapter.evaluation.detection_figures import DetectionFigures, write_tables
from vitadapter.evaluation.precision_recall import plot_precision_recall
from vitadapter.evaluation.results_file import Instance, load_results

__all__ = ["analyze_results", "evaluate_detections", "write_analysis"]


def evaluate_detections(
    annotations: COCO, detections: Sequence[Instance], task: str
) -> DetectionFigures:
    """Runs pycocotools with at most 100 detections per image and class.

    Args:
        annotations: with "area" and "iscrowd", as of :func:`complete_annotations`.
        detections: at least one, in COCO's results format.
        task: "bbox" or "segm".
    """
    results = detections_of_task(detections, task)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        coco_eval = COCOeval(annotations, annotations.loadRes(results), task)
        coco_eval.evaluate()
        coco_eval.accumulate()
    categories = annotations.loadCats(coco_eval.params.catIds)
    return DetectionFigures.from_coco_eval(coco_eval, [category["name"] for category in categories])


def write_analysis(
    tasks: Sequence[DetectionFigures], output_dir: str | Path, *, plot_curves: bool = True
) -> list[Path]:
    """Writes the tables and, for each task, `precision_recall_{task}.png`.

    Args:
        tasks: figures of each task.
        output_dir: folder for the files; is made.
        plot_curves: whether to draw the pictures.

    Returns:
        list[Path]: the files.
    """
    written = write_tables(tasks, output_dir)
    for figures in tasks if plot_curves else ():
        written.append(Path(output_dir) / f"precision_recall_{figures.task}.png")
        plot_precision_recall(figures, written[-1])
    return written


def analyze_results(
    json_file: str | Path, results_file: str | Path, output_dir: str | Path | None = None
) -> tuple[list[DetectionFigures], list[Path]]:
    """Figures of boxes, and of masks where both files have them, and the files that hold them.

    Args:
        json_file: annotations in COCO's instances format.
        results_file: `coco_instances_results.json` of an evaluation.
        output_dir: folder for the files; None writes them next to the results.

    Raises:
        ValueError: a file that cannot be read, or without annotations or detections.
    """
    images = load_results(json_file, results_file)
    detections = [found for by_image in images.predictions.values() for found in by_image]
    if not detections:
        raise ValueError(f"{results_file} must hold detections, got none")
    content = images.api.dataset
    if not content["annotations"]:
        raise ValueError(f"{json_file} must hold annotations, got none")
    masks = all("segmentation" in found for found in detections)
    content["annotations"] = complete_annotations(content["annotations"], masks=masks)
    with contextlib.redirect_stdout(io.StringIO()):
        images.api.createIndex()
    masks = masks and all("segmentation" in each for each in content["annotations"])
    tasks = [
        evaluate_detections(images.api, detections, task)
        for task in (["bbox", "segm"] if masks else ["bbox"])
    ]
    folder = Path(results_file).expanduser().parent if output_dir is None else Path(output_dir)
    return tasks, write_analysis(tasks, folder.expanduser())
