"""COCO evaluation of the data set that a config names."""

import contextlib
import io
import logging
from collections.abc import Sequence

from detectron2.evaluation import COCOEvaluator

from vitadapter.data.coco import register_coco

__all__ = ["coco_evaluator"]

logger = logging.getLogger(__name__)


def _usable_mask(segmentation: object) -> object | None:
    """The mask as Detectron2's loader takes it: polygons of fewer than three points are none."""
    if isinstance(segmentation, list):
        return [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0] or None
    return segmentation or None


def _complete(annotations: Sequence[dict[str, object]], masks: bool) -> list[dict[str, object]]:
    """Fills in what pycocotools reads but other tools leave out, so that no run ends in KeyError.

    In a set with masks the annotations without one are left out, as in training.
    """
    completed = []
    found = [_usable_mask(annotation.get("segmentation")) for annotation in annotations]
    need_mask = masks and any(found)
    for annotation, mask in zip(annotations, found, strict=True):
        if need_mask and mask is None:
            continue
        box = annotation["bbox"]
        defaults = {"iscrowd": 0, "area": box[2] * box[3]}
        completed.append({**defaults, **annotation, **({"segmentation": mask} if mask else {})})
    if len(completed) < len(annotations):
        dropped = len(annotations) - len(completed)
        logger.warning("evaluation leaves out %d annotations without a mask", dropped)
    return completed


class _LenientEvaluator(COCOEvaluator):
    """Detectron2's, with the annotations completed."""

    def __init__(
        self, dataset_name: str, tasks: tuple[str, ...] | None, output_dir: str | None
    ) -> None:
        super().__init__(dataset_name, tasks=tasks, output_dir=output_dir)
        content = self._coco_api.dataset
        if "annotations" in content:
            masks = tasks is None or "segm" in tasks
            content["annotations"] = _complete(content["annotations"], masks)
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
                self._coco_api.createIndex()


def coco_evaluator(
    name: str,
    json_file: str | None = None,
    image_root: str | None = None,
    output_dir: str | None = None,
    *,
    tasks: Sequence[str] | None = None,
) -> COCOEvaluator:
    """Detectron2's COCO evaluator for a data set given by name or by its files.

    Args:
        name: a registered data set; not used when `json_file` is given.
        json_file: annotations in COCO's instances format.
        image_root: folder of the images.
        output_dir: folder for the predictions; None writes none.
        tasks: of "bbox" and "segm"; None takes what the model predicts.

    Raises:
        ValueError: the data set does not exist, or a task is unknown.
    """
    unknown = set(tasks or ()) - {"bbox", "segm"}
    if unknown:
        raise ValueError(f"tasks must be of 'bbox' and 'segm', got {sorted(unknown)}")
    registered = register_coco(name, json_file, image_root, role="test")
    return _LenientEvaluator(registered, tuple(tasks) if tasks else None, output_dir)
