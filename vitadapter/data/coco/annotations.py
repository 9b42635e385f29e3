"""Reads annotations in COCO's or LVIS's format, and checks every field.

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

from vitadapter.data.coco.json_entries import (
    Entry,
    Findings,
    Id,
    by_id,
    check_image,
    checked_at,
    file_name_of,
    find_id,
    image_path,
    is_id,
    listed,
    name_of,
    note_shared_files,
    read_json,
)
from vitadapter.data.coco.objects import checked_object
from vitadapter.data.dataset_source import Record

__all__ = [
    "Category",
    "CocoData",
    "coco_classes",
    "distinct",
    "note_repeated",
    "parse_coco",
    "read_coco",
    "with_masks",
]

logger = logging.getLogger(__name__)

# Lists of category ids that LVIS's images have.
_LVIS_KEYS: Final = ("neg_category_ids", "not_exhaustive_category_ids")

_PARENT = "left out categories that have no annotation and are the supercategory of others"
_NO_IMAGE = "left out annotations of images that are not in the file"
_SAME_NAME = "added the id to the names of categories that share their name"
_NO_CATEGORY = "categories for which images were searched are not in the file"
_NO_MASK = "dropped annotations without a mask"
_REPEATED = (
    "annotations repeat another one of the same image, category, box and mask, and each of them "
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
            record["file_name"] = checked_at(where, image_path, image_root, record["file_name"])
        return self


def with_masks(data: CocoData) -> CocoData:
    """The data without annotations that lack a mask, for training and evaluation of masks.

    Raises:
        ValueError: there are annotations, but none has a mask.
    """
    findings = Findings()
    records: list[Record] = []
    for record in data.records:
        kept = []
        for annotation in record.get("annotations", []):
            if "segmentation" in annotation:
                kept.append(annotation)
            else:
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
        records[id_] = checked_at(where, _image_record, image, numbers, findings)
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
        entry["name"] = checked_at(f"{source}: category {id_!r}", name_of, entry, "name")
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
        note_repeated(record, findings)


def note_repeated(record: Record, findings: Findings) -> None:
    """Notes annotations that occur twice. They stay, because other programs count them as well."""
    annotations = record["annotations"]
    boxes = Counter((a["category_id"], *a["bbox"]) for a in annotations)
    if len(boxes) == len(annotations):
        return
    seen: set[tuple[object, ...]] = set()
    for annotation in annotations:
        box = (annotation["category_id"], *annotation["bbox"])
        if boxes[box] > 1:
            box_and_mask = (*box, repr(annotation.get("segmentation")))
            if box_and_mask in seen:
                place = f"that with the box {[*annotation['bbox']]} of {record['file_name']}"
                findings.add(_REPEATED, place)
            seen.add(box_and_mask)
