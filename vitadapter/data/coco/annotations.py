"""Reads annotations in COCO's or LVIS's format, or from a function, and checks every field.

Training, evaluation and analysis all read annotations here, so that they see the same objects. What
COCO's format leaves open is mended (`area`, `iscrowd`, and the ids of annotations, which mean
nothing). Objects without a box in the image, which no model can find, are left out. Each kind of
change is logged in one warning. Anything doubtful is refused with its file, image and annotation.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypedDict, cast

import numpy as np
from detectron2.structures import BoxMode

from vitadapter.data.coco.json_entries import (
    Entry,
    Findings,
    Id,
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
from vitadapter.data.dataset_source import Annotation, Record

__all__ = [
    "Category",
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
_LVIS_KEYS: Final = ("neg_category_ids", "not_exhaustive_category_ids")

_PARENT = "left out {} categories that have no annotation and are the supercategory of others"
_NO_IMAGE = "left out {} annotations of images that are not in the file"
_SAME_NAME = "added the id to the names of {} categories that share their name"
_NO_CATEGORY = "{} of the categories for which images were searched are not in the file"
_NO_MASK = "dropped {} annotations without a mask"
_REPEATED = (
    "{} annotations repeat another one of the same image, category, box and mask, and each of them "
    "counts as an object"
)


class Category(TypedDict, total=False):
    """A category of the file, with all its fields."""

    id: Id
    name: str
    supercategory: object
    frequency: object
    image_count: object


@dataclass(frozen=True)
class CocoData:
    """A data set that has been checked."""

    source: str
    """The json file, or the name of the data set."""
    categories: tuple[Category, ...]
    """The category of each class, in the order of the class numbers."""
    records: list[Record]
    """Detectron2's standard data set dicts, by ascending image id; "file_name" is as in the file.

    In a test set made without annotations, none has "annotations". Otherwise each annotation has a
    "bbox" in XYWH_ABS, a class number as "category_id", "iscrowd", "area", and "segmentation" if it
    has a mask. LVIS's lists of category ids are as in the file, or empty if they are null.
    """
    parents: tuple[str, ...] = ()
    """Names of categories that are not classes; see `coco_classes`."""

    @property
    def class_names(self) -> list[str]:
        """The names in the order of the class numbers."""
        return [category["name"] for category in self.categories]

    @property
    def dataset_ids(self) -> dict[Id, int]:
        """Class number of each category id."""
        return {category["id"]: number for number, category in enumerate(self.categories)}

    @property
    def has_annotations(self) -> bool:
        """Whether the data set is annotated, even if without any object."""
        return all("annotations" in record for record in self.records)

    @property
    def has_masks(self) -> bool:
        """Whether any annotation has a mask."""
        annotations = (a for r in self.records for a in r.get("annotations", ()))
        return any("segmentation" in annotation for annotation in annotations)

    def located(self, image_root: str | Path) -> "CocoData":
        """Makes each "file_name" a path below `image_root`, and returns the data.

        Raises:
            ValueError: a file is outside it.
        """
        for record in self.records:
            where = f"{self.source}: image {record['image_id']!r}"
            record["file_name"] = told(where, image_path, image_root, record["file_name"])
        return self


def with_masks(data: CocoData) -> CocoData:
    """The data without annotations that lack a mask, for training and evaluation of masks.

    Raises:
        ValueError: there are annotations, but none has a mask.
    """
    findings = Findings()
    records: list[Record] = []
    for record in data.records:
        annotations = record.get("annotations", [])
        kept = [a for a in annotations if "segmentation" in a]
        for annotation in annotations if len(kept) < len(annotations) else []:
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
        ValueError: it has the wrong format, or contradicts itself; see the module.
    """
    return parse_coco(read_json(json_file), str(json_file))


def parse_coco(content: object, source: str) -> CocoData:
    """Like `read_coco`, for content that json has already read.

    Args:
        content: of the file; it is not changed.
        source: the file, for messages.
    """
    findings = Findings()
    images = by_id(listed(content, "images", source), "images", source, "file_name")
    categories, parents = coco_classes(content, source, findings)
    numbers = {category["id"]: number for number, category in enumerate(categories)}
    records: dict[Id, Record] = {}
    for id_, image in images.items():
        where = f"{source}: image {id_!r} ({image.get('file_name')!r})"
        records[id_] = told(where, _image_record, image, numbers, findings)
    note_shared_files(records.values(), "file_name", findings)
    if _is_annotated(content):
        annotations = listed(content, "annotations", source, may_be_empty=True)
        _add_annotations(annotations, records, numbers, source, findings)
    findings.warn(logger, source)
    return CocoData(source, tuple(categories), list(records.values()), tuple(parents))


def _is_annotated(content: object) -> bool:
    return isinstance(content, Mapping) and "annotations" in content  # test sets have none


def coco_classes(
    content: object, source: str, findings: Findings
) -> tuple[list[Category], list[str]]:
    """The categories of a file that are classes, and the names of those that are not.

    Annotation services export the parent of all classes as a category without annotations. It is
    not a class.

    Args:
        content: of the file.
        source: the file, for messages.
        findings: to which changes are added.

    Returns:
        The classes by ascending id, with different names, and the names of the parents.

    Raises:
        ValueError: there are no categories, or one has no id or name.
    """
    entries = by_id(listed(content, "categories", source), "categories", source, "name")
    for id_, entry in entries.items():
        entry["name"] = told(f"{source}: category {id_!r}", name_of, entry, "name")
    by_number = cast(dict[Id, Category], entries)
    parents = {c.get("supercategory") for c in by_number.values() if _is_child(c)}
    candidates = {c["id"] for c in by_number.values() if c["name"] in parents}
    if candidates and _is_annotated(content):
        annotations = listed(content, "annotations", source, may_be_empty=True)
        candidates -= {used for a in annotations if is_id(used := a.get("category_id"))}
        for id_ in candidates:
            findings.add(_PARENT, f"{by_number[id_]['name']!r} (id {id_!r})")
    classes = [c for c in by_number.values() if c["id"] not in candidates]
    return distinct(classes, findings), [by_number[id_]["name"] for id_ in candidates]


def _is_child(category: Category) -> bool:
    parent = category.get("supercategory")
    return isinstance(parent, str) and parent != category["name"]


def distinct(categories: list[Category], findings: Findings) -> list[Category]:
    """Gives categories different names, because metrics and tables know classes by their names."""
    counts = Counter(category["name"] for category in categories)
    for category in categories:
        if counts[category["name"]] > 1:
            category["name"] = f"{category['name']} ({category['id']})"
            findings.add(_SAME_NAME, category["name"])
    return categories


def _image_record(image: Entry, numbers: Mapping[Id, int], findings: Findings) -> Record:
    url = image.get("coco_url")
    if image.get("file_name") is None and isinstance(url, str):
        # ".../train2017/000000000009.jpg": LVIS's validation set has images of both folders.
        image = {**image, "file_name": "/".join(url.split("/")[-2:])}
    name = file_name_of(image)
    height, width = check_image(image)
    id_ = cast(Id, image["id"])  # checked by `by_id`
    record: Record = {"file_name": name, "height": height, "width": width, "image_id": id_}
    for key in _LVIS_KEYS:
        if key in image:
            ids = [] if image[key] is None else image[key]
            if not isinstance(ids, list):
                raise ValueError(f"must have a list of category ids as {key}, got {ids!r:.80}")
            known = [find_id({key: id_}, key, numbers, "categories") for id_ in ids]
            if None in known:
                findings.add(_NO_CATEGORY, f"{ids[known.index(None)]!r} of {name}")
            record[key] = ids
    return record


def _add_annotations(
    annotations: Sequence[Entry],
    records: Mapping[Id, Record],
    numbers: Mapping[Id, int],
    source: str,
    findings: Findings,
) -> None:
    """Adds its annotations to each record."""
    for record in records.values():
        record["annotations"] = []
    strangers = 0
    for position, annotation in enumerate(annotations):

        def where(position: int = position, annotation: Entry = annotation) -> str:
            image = annotation.get("image_id")
            record = records.get(image) if is_id(image) else None
            file_name = None if record is None else record["file_name"]
            id_ = annotation.get("id")
            return f"annotations[{position}] (id {id_!r:.40}, image {image!r:.40}, {file_name})"

        def note(kind: str, where: Callable[[], str] = where) -> None:
            findings.add(kind, where())

        try:
            image_id = find_id(annotation, "image_id", records, "images")
            if image_id is None:
                note(_NO_IMAGE)
                strangers += 1
                continue
            category_id = find_id(annotation, "category_id", numbers, "categories")
            if category_id is None:
                raise ValueError(f"has the unknown category_id {annotation['category_id']!r}")
            record = records[image_id]
            checked = checked_object(annotation, (record["height"], record["width"]), note)
        except ValueError as error:
            raise ValueError(f"{source}: {where()} {error}") from error
        if checked is not None:
            checked["category_id"] = numbers[category_id]
            record["annotations"].append(checked)
    if strangers and strangers == len(annotations):
        raise ValueError(f"{source}: no annotation is of one of its images")
    for record in records.values():
        _note_repeated(record, findings)


def _note_repeated(record: Record, findings: Findings) -> None:
    """They stay, as pycocotools counts them too: the metrics must be those of other programs."""
    first: dict[tuple[float, ...], Annotation] = {}
    for annotation in record["annotations"]:
        box = annotation["bbox"]
        other = first.setdefault((annotation["category_id"], *box), annotation)
        if other is not annotation and other.get("segmentation") == annotation.get("segmentation"):
            findings.add(_REPEATED, f"that with the box {[*box]} of {record['file_name']}")


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
        checked = told(where, _checked_object, annotation, (height, width), where, findings)
        if checked is not None:
            located["annotations"].append(checked)
    _note_repeated(located, findings)
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
        checked.append(told(where, _checked_record, record, findings))
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
