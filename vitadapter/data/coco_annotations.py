"""Annotations of a data set in Detectron2's format: checked, and cleaned of what is unusable."""

import logging
import math
from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np
from detectron2.structures import BoxMode

__all__ = ["check_has_masks", "drop_unusable"]

logger = logging.getLogger(__name__)

Record = dict[str, object]


def _box_size(annotation: Mapping, file_name: str) -> tuple[float, float]:
    box = annotation.get("bbox")
    is_list = isinstance(box, Sequence | np.ndarray) and len(box) in (4, 5)
    if not is_list or not all(isinstance(value, Real) for value in box):
        raise ValueError(f"an annotation of {file_name} must have a box of 4 numbers, got {box!r}")
    if "bbox_mode" not in annotation:
        raise ValueError(f"an annotation of {file_name} must have a bbox_mode, got {annotation}")
    if annotation["bbox_mode"] == BoxMode.XYXY_ABS:
        return box[2] - box[0], box[3] - box[1]
    return box[2], box[3]


def _check_mask_size(record: Record, annotation: Mapping) -> None:
    mask = annotation.get("segmentation")
    if isinstance(mask, Mapping) and "height" in record:
        expected = [record["height"], record["width"]]
        size = list(mask.get("size") or ())
        if size != expected:
            raise ValueError(
                f"a mask of {record['file_name']} has the size {size}, but the "
                f"annotations give the image as {expected} (height, width)"
            )


def drop_unusable(records: list[Record], name: str, masks: bool) -> list[Record]:
    """Leaves out annotations that cannot be trained on; each kind is counted in one warning.

    Args:
        records: Detectron2's standard data set dicts; they stay as they are.
        name: of the data set, for the warnings.
        masks: whether annotations without a mask are left out, too.

    Returns:
        list[dict]: as many records, without annotations whose box has no area.

    Raises:
        ValueError: a malformed box, or a mask that does not have the size of its image.
    """
    no_area = no_mask = 0
    cleaned = []
    for record in records:
        kept = []
        for annotation in record.get("annotations", ()):
            size = _box_size(annotation, record["file_name"])
            if min(size) <= 0 or not all(map(math.isfinite, annotation["bbox"])):
                no_area += 1
            elif masks and not annotation.get("segmentation"):
                no_mask += 1
            else:
                _check_mask_size(record, annotation)
                kept.append(annotation)
        # A registered function may hand out its own list: never change it in place.
        cleaned.append({**record, "annotations": kept} if "annotations" in record else record)
    if no_area:
        logger.warning("'%s': dropped %d annotations whose box has no area", name, no_area)
    if no_mask:
        logger.warning("'%s': dropped %d annotations without a mask", name, no_mask)
    return cleaned


def check_has_masks(records: list[Record], name: str) -> None:
    """Refuses box-only data for a detector of masks.

    Args:
        records: Detectron2's standard data set dicts.
        name: of the data set, for the message.

    Raises:
        ValueError: there are annotations but no masks.
    """
    annotations = [a for r in records for a in r.get("annotations", ())]
    if annotations and not any(a.get("segmentation") for a in annotations):
        raise ValueError(
            f"none of the {len(annotations)} annotations of '{name}' has a mask, but the config "
            "trains masks: use a box-only config (faster_rcnn_*, atss_*, gfl_*, sparse_rcnn_*)"
        )
