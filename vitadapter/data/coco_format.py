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

from vitadapter.data.coco_objects import checked_object
from vitadapter.data.json_entries import (
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

__all__ = ["CocoData", "coco_classes", "distinct", "parse_coco", "read_coco", "with_masks"]

logger = logging.getLogger(__name__)

Record = dict[str, object]

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
