"""COCO's panoptic json files as Detectron2's data set dicts.

Detectron2's own loader takes images for `.jpg` files and numbers classes as a builtin list says;
this one reads both from the file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitadapter.data.panoptic_maps import VOID

__all__ = ["PanopticClasses", "read_panoptic_json", "read_panoptic_records"]

Record = dict[str, object]

# What a file of another format leads to.
_FORMAT_ERRORS = (AttributeError, IndexError, KeyError, TypeError)


@dataclass(frozen=True)
class PanopticClasses:
    """Classes as models number them: things first, then stuff, each by category id.

    Attributes:
        names: of all classes.
        dataset_ids: category ids of all classes.
        num_things: the first so many are things.
    """

    names: tuple[str, ...]
    dataset_ids: tuple[int, ...]
    num_things: int


def read_panoptic_json(json_file: str) -> tuple[Mapping[str, Sequence[Record]], PanopticClasses]:
    """The content of a file, and its classes.

    Raises:
        ValueError: not COCO's panoptic format; names the file.
    """
    try:
        content = json.loads(Path(json_file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{json_file} is not json ({error})") from error
    rule = f"{json_file} is not in COCO's panoptic format"
    if not isinstance(content, Mapping):
        raise ValueError(f"{rule}: a json {type(content).__name__} instead of an object")
    for key in ("images", "annotations", "categories"):
        if not content.get(key):
            raise ValueError(f"{rule}: it has no {key}")
    try:
        if "segments_info" not in content["annotations"][0]:
            raise ValueError(
                f"{rule}: its annotations have no segments_info (COCO's instances files have none)"
            )
        categories = sorted(content["categories"], key=lambda c: (not c["isthing"], c["id"]))
        names = tuple(str(category["name"]) for category in categories)
        dataset_ids = tuple(int(category["id"]) for category in categories)
    except _FORMAT_ERRORS as error:
        raise ValueError(f"{rule}: {error!r}") from error
    if len(set(dataset_ids)) < len(dataset_ids):
        raise ValueError(f"{json_file} has two categories of one id")
    num_things = sum(bool(category["isthing"]) for category in categories)
    return content, PanopticClasses(names, dataset_ids, num_things)


def read_panoptic_records(json_file: str, panoptic_root: str, image_root: str) -> list[Record]:
    """Detectron2's standard data set dicts for panoptic segmentation.

    Args:
        json_file: in COCO's panoptic format.
        panoptic_root: folder of the panoptic maps, which the annotations name.
        image_root: folder that the images' file names are relative to.

    Returns:
        list[dict]: "file_name", "image_id", "height", "width", "pan_seg_file_name" and
        "segments_info": of each segment what the file says, with `category_id` as
        `PanopticClasses` numbers it, `isthing` and `iscrowd`.

    Raises:
        ValueError: not COCO's panoptic format, or a segment of an unknown category or without an
            id of its own; names the file, and the map.
    """
    content, classes = read_panoptic_json(json_file)
    try:
        images = {image["id"]: image for image in content["images"]}
        return [
            {
                "file_name": str(Path(image_root, images[annotation["image_id"]]["file_name"])),
                "image_id": annotation["image_id"],
                "height": images[annotation["image_id"]]["height"],
                "width": images[annotation["image_id"]]["width"],
                "pan_seg_file_name": str(Path(panoptic_root, annotation["file_name"])),
                "segments_info": _segments(annotation, classes, json_file),
            }
            for annotation in content["annotations"]
        ]
    except _FORMAT_ERRORS as error:
        raise ValueError(f"{json_file} is not in COCO's panoptic format: {error!r}") from error


def _segments(
    annotation: Mapping[str, object], classes: PanopticClasses, json_file: str
) -> list[Record]:
    classes_by_id = {id_: i for i, id_ in enumerate(classes.dataset_ids)}
    segments: dict[int, Record] = {}
    for segment in annotation["segments_info"]:
        where = f"segment {segment['id']} of {annotation['file_name']} in {json_file}"
        if segment["category_id"] not in classes_by_id:
            raise ValueError(f"{where} has the unknown category {segment['category_id']}")
        if segment["id"] in segments or not VOID < segment["id"] < 256**3:
            raise ValueError(f"{where} must have an id of its own in 1 .. 2^24 - 1")
        index = classes_by_id[segment["category_id"]]
        segments[segment["id"]] = {
            **segment,
            "category_id": index,
            "isthing": index < classes.num_things,
            "iscrowd": int(segment.get("iscrowd", 0)),
        }
    return list(segments.values())
