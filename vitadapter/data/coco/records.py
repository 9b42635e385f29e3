"""Checks the data set dicts that a user's registered function returns, field by field.

The rules are those of `annotations` for files.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from detectron2.structures import BoxMode

from vitadapter.data.coco.annotations import Category, CocoData, distinct, note_repeated
from vitadapter.data.coco.json_entries import Entry, Findings, Id, check_image, checked_at, is_id
from vitadapter.data.coco.objects import all_numbers, checked_object
from vitadapter.data.dataset_source import Annotation, Record

__all__ = ["check_records"]

logger = logging.getLogger(__name__)


def _categories_of(
    records: Sequence[Record],
    source: str,
    class_names: Sequence[object] | None,
    dataset_ids: Mapping[Id, int] | None,
    findings: Findings,
) -> list[Category]:
    found = {a["category_id"]: r for r in records for a in r.get("annotations", ())}
    last = max(found, default=-1)
    if class_names is None:
        class_names = range(max(last + 1, len(dataset_ids or ())))
    elif last >= len(class_names):
        raise ValueError(
            f"{source}: an annotation of {found[last]['file_name']} has the category_id {last}, "
            f"but the metadata name {len(class_names)} thing_classes"
        )
    if dataset_ids is not None:
        _check_numbers(dataset_ids, len(class_names), source)
    ids = {number: id_ for id_, number in (dataset_ids or {}).items()}
    named = [Category(id=ids.get(n, n), name=str(name)) for n, name in enumerate(class_names)]
    return distinct(named, findings)


def _check_numbers(dataset_ids: object, num_classes: int, source: str) -> None:
    numbers = list(dataset_ids.values()) if isinstance(dataset_ids, Mapping) else None
    if numbers is None or Counter(numbers) != Counter(range(num_classes)):
        raise ValueError(
            f"{source}: thing_dataset_id_to_contiguous_id of the metadata must be a dict with one "
            f"category id for each class 0..{num_classes - 1}, got {dataset_ids!r:.80}"
        )


def _checked_record(record: Entry, findings: Findings) -> Record:
    if not isinstance(record.get("file_name"), str | Path):
        raise ValueError(f"must have a path as file_name, got {record.get('file_name')!r:.80}")
    if "image_id" in record and not is_id(record["image_id"]):
        raise ValueError(f"must have a number or text as image_id, got {record['image_id']!r:.80}")
    height, width = check_image(record)
    located = cast(Record, {**record, "height": height, "width": width})
    if "annotations" not in record:
        return located
    if not isinstance(record["annotations"], list | tuple):
        raise ValueError(f"must have a list of annotations, got {record['annotations']!r:.80}")
    located["annotations"] = []
    for position, annotation in enumerate(record["annotations"]):
        where = f"annotations[{position}] of {record['file_name']}"
        checked = checked_at(where, _checked_object, annotation, (height, width), where, findings)
        if checked is not None:
            located["annotations"].append(checked)
    note_repeated(located, findings)
    return located


def _checked_object(
    annotation: object, size: tuple[int, int], where: str, findings: Findings
) -> Annotation | None:
    """An annotation of a record with its box in XYWH_ABS and all of its other fields."""
    if not isinstance(annotation, Mapping):
        raise ValueError(f"must be a dict, got {annotation!r:.80}")
    category = annotation.get("category_id")
    if not is_id(category) or isinstance(category, str) or category < 0:
        raise ValueError(f"must have a class number as category_id, got {category!r:.80}")
    box = annotation.get("bbox")
    box = box.tolist() if isinstance(box, np.ndarray) else box
    mode = annotation.get("bbox_mode")
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        raise ValueError(f"must have XYXY_ABS or XYWH_ABS as bbox_mode, got {mode!r}")
    if mode == BoxMode.XYXY_ABS and isinstance(box, list | tuple) and len(box) == 4:
        if not all_numbers(box):
            raise ValueError(f"must have a box of 4 numbers as bbox, got {box!r:.80}")
        box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    checked = checked_object(
        {**annotation, "bbox": box}, size, lambda kind: findings.add(kind, where)
    )
    if checked is None:
        return None
    rest = {k: v for k, v in annotation.items() if k != "segmentation"}
    return cast(Annotation, {**rest, **checked, "category_id": int(category)})


def check_records(
    records: object,
    source: str,
    class_names: Sequence[object] | None,
    dataset_ids: Mapping[Id, int] | None,
) -> CocoData:
    """Checks the data set dicts that a user's registered function returns.

    Args:
        records: Detectron2's standard data set dicts. They are not changed, and the result has
            their order and all fields that Detectron2 does not know.
        source: name of the data set, for messages.
        class_names: in the order of the class numbers; None takes the numbers that occur.
        dataset_ids: class number of each category id; None if the ids are the numbers.

    Raises:
        ValueError: they have the wrong format, or contradict each other.
    """
    if not isinstance(records, list) or not records:
        raise ValueError(f"{source} must load as a list of dicts, got {records!r:.80}")
    findings = Findings()
    files: dict[object, object] = {}
    checked = []
    for position, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise ValueError(f"{source}: image {position} must be a dict, got {record!r:.80}")
        where = f"{source}: image {position} ({record.get('file_name')})"
        checked.append(checked_at(where, _checked_record, record, findings))
        id_ = record.get("image_id")
        # An image may be listed several times so that it is seen more often.
        if id_ is not None and files.setdefault(id_, record["file_name"]) != record["file_name"]:
            raise ValueError(f"{where} has the image_id {id_!r}, and so has {files[id_]}")
        if isinstance(id_, str) != isinstance(next(iter(files), id_), str):
            raise ValueError(
                f"{where} has the image_id {id_!r}, but others have ids such as "
                f"{next(iter(files))!r}: they must be all numbers or all texts"
            )
        if ("annotations" in record) != ("annotations" in records[0]):
            raise ValueError(
                f"{where}: either all images must have annotations, or none (test sets), but only "
                "some have: give those without objects an empty list"
            )
    categories = _categories_of(checked, source, class_names, dataset_ids, findings)
    findings.warn(logger, source)
    return CocoData(source, tuple(categories), checked)
