"""Reads COCO's panoptic json files as Detectron2's data set dicts.

Detectron2's own loader assumes that images are `.jpg` files, and numbers classes by a built-in
list. This one reads both from the file, and checks each field as `coco.annotations` does.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from vitadapter.data.coco.annotations import Category, distinct
from vitadapter.data.coco.json_entries import (
    Entry,
    Findings,
    Id,
    by_id,
    check_image,
    checked_at,
    file_name_of,
    find_id,
    flag,
    image_path,
    listed,
    name_of,
    note_shared_files,
    read_json,
)
from vitadapter.data.dataset_source import Record, Segment
from vitadapter.data.panoptic.maps import VOID

__all__ = ["PanopticClasses", "read_panoptic_json", "read_panoptic_records"]

logger = logging.getLogger(__name__)

_NO_MAP = "left out images that have no annotation"


@dataclass(frozen=True)
class PanopticClasses:
    """Classes as models number them: things first, then stuff, each by category id.

    Attributes:
        names: of all classes.
        dataset_ids: category ids of all classes.
        num_things: number of things, which are the first classes.
    """

    names: tuple[str, ...]
    dataset_ids: tuple[Id, ...]
    num_things: int


def read_panoptic_json(
    json_file: str, findings: Findings | None = None
) -> tuple[Mapping[str, Sequence[Entry]], PanopticClasses]:
    """The content of a file, and its classes, with different names.

    Args:
        json_file: in COCO's panoptic format.
        findings: to which changes are added; None if they are logged elsewhere.

    Raises:
        ValueError: it is not COCO's panoptic format; names the file.
    """
    content = read_json(json_file)
    listed(content, "images", json_file)
    if "segments_info" not in listed(content, "annotations", json_file)[0]:
        raise ValueError(
            f"{json_file} is not in COCO's panoptic format: its annotations have no segments_info "
            "(COCO's instances files have none)"
        )
    categories = by_id(listed(content, "categories", json_file), "categories", json_file, "name")
    things: list[Category] = []
    stuff: list[Category] = []
    for id_, category in categories.items():
        where = f"{json_file}: category {id_!r}"
        name = checked_at(where, name_of, category, "name")
        if category.get("isthing") is None:
            raise ValueError(f"{where} must have 0 or 1 as isthing, got None")
        group = things if checked_at(where, flag, category, "isthing") else stuff
        group.append({"id": id_, "name": name})
    ordered = distinct(things + stuff, findings or Findings())
    names, ids = tuple(c["name"] for c in ordered), tuple(c["id"] for c in ordered)
    return cast(Mapping[str, Sequence[Entry]], content), PanopticClasses(names, ids, len(things))


def read_panoptic_records(json_file: str, panoptic_root: str, image_root: str) -> list[Record]:
    """Reads Detectron2's standard data set dicts for panoptic segmentation.

    Args:
        json_file: in COCO's panoptic format.
        panoptic_root: folder of the panoptic maps, which the annotations name.
        image_root: folder that the images' file names are relative to.

    Returns:
        Records with "file_name", "image_id", "height", "width", "pan_seg_file_name" and
        "segments_info", which has what the file says of each segment, with `category_id` as
        `PanopticClasses` numbers it, `isthing` and `iscrowd`. Images without an annotation are
        left out with a warning.

    Raises:
        ValueError: it is not COCO's panoptic format, or a field cannot be right (such as an id of
            two images, or a segment with an unknown category); names the file and the map.
    """
    findings = Findings()
    content, classes = read_panoptic_json(json_file, findings)
    images = by_id(content["images"], "images", json_file, "file_name")
    numbers = {id_: number for number, id_ in enumerate(classes.dataset_ids)}
    records: dict[Id, Record] = {}
    for position, annotation in enumerate(listed(content, "annotations", json_file)):
        where = f"{json_file}: annotations[{position}] ({annotation.get('file_name')})"
        id_ = checked_at(where, find_id, annotation, "image_id", images, "images")
        if id_ is None:
            raise ValueError(f"{where} has the unknown image_id {annotation['image_id']!r}")
        if id_ in records:
            raise ValueError(f"{where} is the second of the image {id_!r}")
        record = checked_at(f"{json_file}: image {id_!r}", _image_record, images[id_], image_root)
        record["image_id"] = id_
        record["pan_seg_file_name"] = checked_at(where, _file, annotation, panoptic_root)
        record["segments_info"] = _segments(annotation, numbers, classes.num_things, where)
        records[id_] = record
    for field in ("file_name", "pan_seg_file_name"):
        note_shared_files(records.values(), field, findings)
    for id_ in images.keys() - records.keys():
        findings.add(_NO_MAP, f"{images[id_].get('file_name')} (id {id_!r})")
    findings.warn(logger, json_file)
    return list(records.values())


def _file(entry: Entry, folder: str) -> str:
    return image_path(folder, file_name_of(entry))


def _image_record(image: Entry, image_root: str) -> Record:
    path = _file(image, image_root)
    height, width = check_image(image)
    return {"file_name": path, "height": height, "width": width}


def _segments(
    annotation: Entry, numbers: Mapping[Id, int], num_things: int, where: str
) -> list[Segment]:
    listed_segments = listed(annotation, "segments_info", where, may_be_empty=True)
    segments: dict[int, Segment] = {}
    for segment in listed_segments:
        id_ = segment.get("id")
        place = f"{where}: segment {id_!r:.40}"
        if type(id_) is not int or id_ in segments or not VOID < id_ < 256**3:
            raise ValueError(f"{place} must have an id of its own in 1 .. 2^24 - 1")
        category_id = checked_at(place, find_id, segment, "category_id", numbers, "categories")
        if category_id is None:
            raise ValueError(f"{place} has the unknown category {segment['category_id']!r}")
        index = numbers[category_id]
        checked: Segment = {
            "category_id": index,
            "isthing": index < num_things,
            "iscrowd": checked_at(place, flag, segment, "iscrowd"),
        }
        segments[id_] = cast(Segment, {**segment, **checked})
    return list(segments.values())
