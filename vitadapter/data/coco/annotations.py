"""Annotations in COCO's and LVIS's format, or as a function gives them, checked field by field.

All that trains, evaluates or analyses reads annotations here, and so sees the same objects. What
COCO's format leaves open is mended (`area`, `iscrowd`, ids of annotations, which mean nothing);
objects that no model can find, for want of a box in the image, are left out; each kind is told in
one warning. What is in doubt is refused, naming file, image and annotation.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from detectron2.structures import BoxMode

from vitadapter.data.coco.json_entries import (
    Entry,
    Findings,
    by_id,
    check_image,
    file_name_of,
    find_id,
    image_path,
    is_id,
    listed,
    name_of,
    note_shared_files,
    read_json,
    told,
)
from vitadapter.data.coco.objects import all_numbers, checked_object
from vitadapter.data.dataset_source import Record

__all__ = [
    "CocoData",
    "check_records",
    "coco_classes",
    "distinct",
    "parse_coco",
    "read_coco",
    "with_masks",
]

logger = logging.getLogger(__name__)

# Lists of category ids that LVIS's images have.
_LVIS_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")

_PARENT = "left out {} categories that have no annotation and are the supercategory of others"
_NO_IMAGE = "left out {} annotations of images that are not in the file"
_SAME_NAME = "told {} categories that share their name apart by their id"
_NO_CATEGORY = "{} of the categories that images have been searched for are not in the file"
_NO_MASK = "dropped {} annotations without a mask"


@dataclass(frozen=True)
class CocoData:
    """A data set, checked."""

    source: str
    """The json file, or the name of the data set."""
    categories: tuple[Entry, ...]
    """Of each class, in the order of the class numbers, at least "id" and "name"."""
    records: list[Record]
    """Detectron2's standard data set dicts, by ascending image id; "file_name" as in the file.

    Those of test sets made without annotations have none; else each annotation has a "bbox" in
    XYWH_ABS, a class number as "category_id", "iscrowd", "area", and "segmentation" if it has a
    mask. LVIS's lists of category ids are as in the file, empty where they are null.
    """

    @property
    def class_names(self) -> list[str]:
        """In the order of the class numbers."""
        return [str(category["name"]) for category in self.categories]

    @property
    def dataset_ids(self) -> dict[int | str, int]:
        """Class number of each category id."""
        return {category["id"]: number for number, category in enumerate(self.categories)}

    @property
    def has_annotations(self) -> bool:
        """Whether the data set tells of objects, if there are any or not."""
        return all("annotations" in record for record in self.records)

    @property
    def has_masks(self) -> bool:
        """Whether any annotation has a mask."""
        annotations = (a for r in self.records for a in r.get("annotations", ()))
        return any("segmentation" in annotation for annotation in annotations)

    def located(self, image_root: str | Path) -> "CocoData":
        """With "file_name" below `image_root`.

        Raises:
            ValueError: a file outside of it.
        """
        for record in self.records:
            where = f"{self.source}: image {record['image_id']!r}"
            record["file_name"] = told(where, image_path, image_root, record["file_name"])
        return self


def with_masks(data: CocoData) -> CocoData:
    """Without the annotations that have no mask, for training and evaluation of masks.

    Raises:
        ValueError: there are annotations, but none has a mask.
    """
    findings = Findings()
    records = []
    for record in data.records:
        annotations = record.get("annotations", ())
        kept = [a for a in annotations if "segmentation" in a]
        for annotation in annotations if len(kept) < len(annotations) else ():
            if "segmentation" not in annotation:
                box = [round(float(value), 2) for value in annotation["bbox"]]
                findings.add(_NO_MASK, f"that with the box {box} of {record['file_name']}")
        records.append({**record, "annotations": kept} if "annotations" in record else record)
    if not data.has_masks and any(record.get("annotations") for record in data.records):
        total = sum(len(record["annotations"]) for record in data.records)
        raise ValueError(
            f"none of the {total} annotations of {data.source} has a mask that can be used"
        )
    findings.warn(logger, data.source)
    return replace(data, records=records)


def read_coco(json_file: str | Path) -> CocoData:
    """Reads a file in COCO's instances format or LVIS's.

    Raises:
        OSError: it cannot be read.
        ValueError: it is of another format, or contradicts itself; see the module.
    """
    return parse_coco(read_json(json_file), str(json_file))


def parse_coco(content: object, source: str) -> CocoData:
    """As :func:`read_coco`, of what json has read.

    Args:
        content: stays as it is.
        source: the file, for messages.
    """
    findings = Findings()
    images = by_id(listed(content, "images", source), "images", source, "file_name")
    categories = coco_classes(content, source, findings)
    numbers = {category["id"]: number for number, category in enumerate(categories)}
    records = {}
    for id_, image in images.items():
        where = f"{source}: image {id_!r} ({image.get('file_name')!r})"
        records[id_] = told(where, _image_record, image, numbers, findings)
    note_shared_files(records.values(), "file_name", findings)
    if "annotations" in content:
        annotations = listed(content, "annotations", source, may_be_empty=True)
        _add_annotations(annotations, records, numbers, source, findings)
    findings.warn(logger, source)
    return CocoData(source, tuple(categories), list(records.values()))


def coco_classes(content: object, source: str, findings: Findings) -> list[Entry]:
    """The categories of a file that are classes, by ascending id, with names of their own.

    Exports of annotation services list the parent of all classes as a category that no annotation
    has: it is none.

    Args:
        content: of the file.
        source: the file, for messages.
        findings: get what was mended.

    Raises:
        ValueError: no categories, or one without id or name.
    """
    by_number = by_id(listed(content, "categories", source), "categories", source, "name")
    for id_, category in by_number.items():
        category["name"] = told(f"{source}: category {id_!r}", name_of, category, "name")
    parents = {c.get("supercategory") for c in by_number.values() if _is_child(c)}
    candidates = {c["id"] for c in by_number.values() if c["name"] in parents}
    if candidates and "annotations" in content:  # test sets have none
        annotations = listed(content, "annotations", source, may_be_empty=True)
        candidates -= {a["category_id"] for a in annotations if is_id(a.get("category_id"))}
        for id_ in candidates:
            findings.add(_PARENT, f"{by_number[id_]['name']!r} (id {id_!r})")
    return distinct([c for c in by_number.values() if c["id"] not in candidates], findings)


def _is_child(category: Entry) -> bool:
    parent = category.get("supercategory")
    return isinstance(parent, str) and parent != category["name"]


def distinct(categories: list[dict[str, object]], findings: Findings) -> list[Entry]:
    """With different names, by which metrics and tables tell the classes apart."""
    counts = Counter(category["name"] for category in categories)
    for category in categories:
        if counts[category["name"]] > 1:
            category["name"] = f"{category['name']} ({category['id']})"
            findings.add(_SAME_NAME, category["name"])
    return categories


def _image_record(image: Entry, numbers: Mapping[int | str, int], findings: Findings) -> Record:
    url = image.get("coco_url")
    if image.get("file_name") is None and isinstance(url, str):
        # ".../train2017/000000000009.jpg": LVIS's validation set has images of both folders.
        image = {**image, "file_name": "/".join(url.split("/")[-2:])}
    name = file_name_of(image)
    height, width = check_image(image)
    record = {"file_name": name, "height": height, "width": width, "image_id": image["id"]}
    for key in _LVIS_KEYS:
        if key in image:
            ids = [] if image[key] is None else image[key]
            if not isinstance(ids, list):
                raise ValueError(f"must have a list of category ids as {key}, got {ids!r:.80}")
            known = [find_id({key: id_}, key, numbers, "categories") for id_ in ids]
            if not all(known):
                findings.add(_NO_CATEGORY, f"{ids[known.index(False)]!r} of {name}")
            record[key] = ids
    return record


def _add_annotations(
    annotations: Sequence[Entry],
    records: Mapping[int | str, Record],
    numbers: Mapping[int | str, int],
    source: str,
    findings: Findings,
) -> None:
    """Gives each record its annotations."""
    for record in records.values():
        record["annotations"] = []
    strangers = 0
    for position, annotation in enumerate(annotations):

        def where(position: int = position, annotation: Entry = annotation) -> str:
            image = annotation.get("image_id")
            record = records.get(image, {}) if is_id(image) else {}
            return (
                f"annotations[{position}] (id {annotation.get('id')!r:.40}, image {image!r:.40}, "
                f"{record.get('file_name')})"
            )

        try:
            if not find_id(annotation, "image_id", records, "images"):
                findings.add(_NO_IMAGE, where())
                strangers += 1
                continue
            if not find_id(annotation, "category_id", numbers, "categories"):
                unknown = annotation["category_id"]
                raise ValueError(f"has the unknown category_id {unknown!r}")
            record = records[annotation["image_id"]]
            checked = checked_object(
                annotation,
                (record["height"], record["width"]),
                lambda kind, where=where: findings.add(kind, where()),
            )
        except ValueError as error:
            raise ValueError(f"{source}: {where()} {error}") from error
        if checked is not None:
            checked["category_id"] = numbers[annotation["category_id"]]
            record["annotations"].append(checked)
    if strangers and strangers == len(annotations):
        raise ValueError(f"{source}: no annotation is of one of its images")


def _categories_of(
    records: Sequence[Record],
    source: str,
    class_names: Sequence[object] | None,
    dataset_ids: Mapping[int | str, int] | None,
    findings: Findings,
) -> list[Entry]:
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
    named = [{"id": ids.get(n, n), "name": str(name)} for n, name in enumerate(class_names)]
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
    located = {**record, "height": height, "width": width}
    if "annotations" not in record:
        return located
    if not isinstance(record["annotations"], list | tuple):
        raise ValueError(f"must have a list of annotations, got {record['annotations']!r:.80}")
    located["annotations"] = []
    for position, annotation in enumerate(record["annotations"]):
        where = f"annotations[{position}] of {record['file_name']}"
        checked = told(where, _checked_object, annotation, (height, width), where, findings)
        if checked is not None:
            located["annotations"].append(checked)
    return located


def _checked_object(
    annotation: object, size: tuple[int, int], where: str, findings: Findings
) -> Record | None:
    """An annotation of a record, with its box in XYWH_ABS, and all of its other fields."""
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
    return {**rest, **checked, "category_id": int(category)}


def check_records(
    records: object,
    source: str,
    class_names: Sequence[object] | None,
    dataset_ids: Mapping[int | str, int] | None,
) -> CocoData:
    """Checks what a function that a user has registered returns.

    Args:
        records: Detectron2's standard data set dicts; they stay as they are, with all that
            Detectron2 does not know, in the order that they have.
        source: name of the data set, for messages.
        class_names: in the order of the class numbers; None takes the numbers that occur.
        dataset_ids: class number of each category id; None where they are equal.

    Raises:
        ValueError: they are of another format, or contradict themselves.
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
        checked.append(told(where, _checked_record, record, findings))
        id_ = record.get("image_id")
        # The same image may be listed again, to be seen more often.
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
