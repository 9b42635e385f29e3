"""Annotations and detections in COCO's format, made ready for pycocotools."""

import logging
from collections.abc import Mapping, Sequence

__all__ = ["complete_annotations", "detections_of_task"]

logger = logging.getLogger(__name__)


def _usable_mask(segmentation: object) -> object | None:
    """The mask as Detectron2's loader takes it: polygons of fewer than three points are none."""
    if isinstance(segmentation, list):
        return [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0] or None
    return segmentation or None


def complete_annotations(
    annotations: Sequence[dict[str, object]], *, masks: bool
) -> list[dict[str, object]]:
    """Fills in what pycocotools reads but other tools leave out, so that no run ends in KeyError.

    In a set with masks the annotations without one are left out, as in training.

    Args:
        annotations: in COCO's instances format.
        masks: whether masks are evaluated.
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


def detections_of_task(
    detections: Sequence[Mapping[str, object]], task: str
) -> list[dict[str, object]]:
    """Copies, which pycocotools may change, with the regions of one task.

    A mask with a box would be sorted into the sizes by the area of the box.

    Args:
        detections: in COCO's results format.
        task: "bbox" or "segm".
    """
    other = {"bbox": "segmentation", "segm": "bbox"}[task]
    return [{k: v for k, v in found.items() if k != other} for found in detections]
