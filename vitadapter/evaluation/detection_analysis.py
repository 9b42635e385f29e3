"""Tables and curves of an evaluation, from the files that it has left."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitadapter.evaluation.coco_annotations import coco_api, detections_of_task, warn_of_uncounted
from vitadapter.evaluation.detection_figures import DetectionFigures, write_tables
from vitadapter.evaluation.precision_recall import plot_precision_recall
from vitadapter.evaluation.results_file import Instance, load_results

__all__ = ["analyze_results", "evaluate_detections", "write_analysis"]


def evaluate_detections(
    annotations: COCO, detections: Sequence[Instance], task: str, *, max_dets_per_image: int = 100
) -> DetectionFigures:
    """Runs pycocotools.

    Args:
        annotations: as of :func:`coco_api`.
        detections: at least one, in COCO's results format.
        task: "bbox" or "segm".
        max_dets_per_image: detections of each category that are counted.
    """
    results = detections_of_task(detections, task)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        coco_eval = COCOeval(annotations, annotations.loadRes(results), task)
        coco_eval.params.maxDets = [max_dets_per_image]
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
    json_file: str | Path,
    results_file: str | Path,
    output_dir: str | Path | None = None,
    *,
    max_dets_per_image: int = 100,
) -> tuple[list[DetectionFigures], list[Path]]:
    """Figures of boxes, and of masks where both files have them, and the files that hold them.

    Args:
        json_file: annotations in COCO's instances format.
        results_file: `coco_instances_results.json` of an evaluation.
        output_dir: folder for the files; None writes them next to the results.
        max_dets_per_image: as in :func:`evaluate_detections`.

    Raises:
        ValueError: a file that cannot be read, or without annotations or detections.
    """
    if max_dets_per_image < 1:
        raise ValueError(f"max_dets_per_image must be at least 1, got {max_dets_per_image}")
    images = load_results(json_file, results_file)
    detections = [found for by_image in images.predictions.values() for found in by_image]
    if not detections:
        raise ValueError(f"{results_file} must hold detections, got none")
    if not images.api.anns:
        raise ValueError(f"{json_file} must hold annotations, got none")
    masks = images.data.has_masks and all("segmentation" in found for found in detections)
    api = coco_api(images.data, masks=masks)
    warn_of_uncounted(api, max_dets_per_image, per_category=True)
    tasks = [
        evaluate_detections(api, detections, task, max_dets_per_image=max_dets_per_image)
        for task in (["bbox", "segm"] if masks else ["bbox"])
    ]
    folder = Path(results_file).expanduser().parent if output_dir is None else Path(output_dir)
    return tasks, write_analysis(tasks, folder.expanduser())
