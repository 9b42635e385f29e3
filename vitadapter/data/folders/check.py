"""What is in a data set, and what of it would make training or evaluation wrong."""

import csv
import logging
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from vitadapter.data.coco.annotations import coco_classes
from vitadapter.data.coco.json_entries import (
    Entry,
    Findings,
    Id,
    by_id,
    check_image,
    checked_at,
    find_id,
    image_path,
    listed,
    read_json,
)
from vitadapter.data.coco.objects import all_numbers, is_number
from vitadapter.data.dataset_source import first_few, spread
from vitadapter.data.folders.image_checks import ListedImage, check_images
from vitadapter.data.folders.image_size import propose_crop, propose_resize
from vitadapter.data.folders.listing import image_facts
from vitadapter.data.folders.prepare import LabelSettings, Prepared, Values
from vitadapter.data.folders.report import ROLES, CheckReport
from vitadapter.data.panoptic.annotations import read_panoptic_json, read_panoptic_records
from vitadapter.data.panoptic.maps import read_record_map
from vitadapter.data.sem_seg.labels import LabelReader, read_class_names
from vitadapter.data.sem_seg.layouts import SemSegLayout, find_pairs

__all__ = ["check_dataset", "check_once"]

logger = logging.getLogger(__name__)

# Images that are read at the start of a run: seconds, once for each state of the data.
_NUM_IMAGES_READ = 1000
# In COCO's words: areas of small and of medium objects end here, in square pixels.
_SMALL, _MEDIUM = 32**2, 96**2
# Lines of boxes that are left out.
_UNUSABLE = ("boxes_without_area", "boxes_outside_the_image")


def _files(values: Values, role: str, *keys: str) -> list[str]:
    return [str(values[f"dataset.{role}.{key}"]) for key in keys]


@dataclass(frozen=True)
class _Box:
    """The box of an object, as the file has it."""

    image_size: tuple[int, int]
    sides: Sequence[float]
    area: float
    is_crowd: bool


def _box_of(annotation: Entry, image_size: tuple[int, int]) -> _Box | None:
    box, area = annotation.get("bbox"), annotation.get("area")
    if not isinstance(box, list) or len(box) != 4 or not all_numbers(box):
        return None
    if not is_number(area) or not area > 0:
        area = box[2] * box[3]
    return _Box(image_size, box, area, bool(annotation.get("iscrowd")))


def _box_line(box: _Box) -> str:
    """The line of the table that a box outside its image, or without area, counts in, or ""."""
    height, width = box.image_size
    x, y, w, h = box.sides
    if not (w > 0 and h > 0):
        return "boxes_without_area"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return "boxes_outside_the_image"
    if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
        return "boxes_that_reach_out_of_the_image"
    return ""


def _size_line(box: _Box) -> str:
    if box.is_crowd:
        return "crowds"
    size = "small" if box.area < _SMALL else "medium" if box.area < _MEDIUM else "large"
    return f"{size}_objects"


def _check_boxes(report: CheckReport, role: str, boxes: Sequence[_Box]) -> None:
    lines = ("crowds", "small_objects", "medium_objects", "large_objects")
    faults = (*_UNUSABLE, "boxes_that_reach_out_of_the_image")
    counts = Counter(dict.fromkeys(lines + faults, 0))
    for box in boxes:
        counts[_size_line(box)] += 1
        counts[_box_line(box)] += 1
    counts.pop("", None)
    report.set(role, **counts)
    unusable = sum(counts[line] for line in _UNUSABLE)
    if unusable:
        much = 2 * unusable > len(boxes)
        (report.refusals if much else report.warnings).append(
            f"{unusable} of {len(boxes)} boxes of dataset.{role} without area in their image, left "
            "out"
        )


def _check_instances(values: Values, report: CheckReport, role: str) -> list[ListedImage]:
    source, root = _files(values, role, "json_file", "image_root")
    content = read_json(source)
    classes, _ = coco_classes(content, source, Findings())
    numbers = {category["id"]: number for number, category in enumerate(classes)}
    report.class_names = [category["name"] for category in classes]
    images = by_id(listed(content, "images", source), "images", source, "file_name")
    sizes = {i: checked_at(f"{source}: image {i!r}", check_image, images[i]) for i in images}
    annotations = listed(content, "annotations", source, may_be_empty=True)
    shown: dict[Id, list[int]] = {}
    boxes: list[_Box] = []
    for position, annotation in enumerate(annotations):
        where = f"{source}: annotations[{position}]"
        image = checked_at(where, find_id, annotation, "image_id", sizes, "images")
        kind = checked_at(where, find_id, annotation, "category_id", numbers, "categories")
        box = None if image is None else _box_of(annotation, sizes[image])
        if image is None or kind is None or box is None:
            continue  # the loader tells of it
        objects = shown.setdefault(image, [])
        objects += [] if box.is_crowd else [numbers[kind]]
        boxes.append(box)
    report.count_classes(role, shown.values())
    report.set(role, images=len(sizes), images_without_objects=len(sizes) - len(shown))
    _check_boxes(report, role, boxes)
    if role == "train":
        usable = [box for box in boxes if not box.is_crowd and _box_line(box) not in _UNUSABLE]
        report.proposal = propose_resize([(*box.image_size, box.area) for box in usable])
    return [
        ListedImage(image_path(root, name), sizes[id_])
        for id_, image in images.items()
        if isinstance(name := image.get("file_name"), str) and name
    ]


def _note_unusable(
    report: CheckReport, role: str, what: str, faults: Sequence[str], num_read: int
) -> None:
    report.set(role, **{f"{what} read": num_read, f"unusable {what}": len(faults)})
    if faults:
        report.refusals.append(
            f"{len(faults)} of {num_read} {what} of dataset.{role} cannot be used: "
            f"{first_few(faults)}"
        )


def _check_semantic(
    values: Values, report: CheckReport, role: str, limit: int | None, labels: LabelSettings
) -> list[ListedImage]:
    num_classes, names = int(str(values["dataset.num_classes"])), values["dataset.class_names"]
    numbers = [str(number) for number in range(num_classes)]
    report.class_names = numbers if names is None else read_class_names(str(names))
    report.unit = "pixels"
    read = LabelReader(num_classes, labels.ignore_label, labels.reduce_zero_label)
    images, maps = _files(values, role, "image_root", "label_root")
    pairs, _, _ = find_pairs(SemSegLayout(images, maps, report.class_names, False, None))
    chosen = spread(pairs, limit or len(pairs))
    faults: list[str] = []
    pixels = np.zeros((2, num_classes), np.int64)
    sizes: list[tuple[int, int]] = []
    for image, label in chosen:
        # Where they are links in the cache, messages shall name the files of the user.
        image, label = os.path.realpath(image), os.path.realpath(label)
        try:
            found = read(label)
        except ValueError as error:
            faults.append(str(error))
            continue
        with suppress(ValueError):  # of an image that cannot be read, the check of images tells
            if found.shape != image_facts(image).size:
                faults.append(f"{label} has not the size of its image {image}")
                continue
        counts = np.bincount(found[found != labels.ignore_label], minlength=num_classes)
        pixels += counts, counts > 0
        sizes.append((found.shape[0], found.shape[1]))
    if role == "train":
        report.proposal = propose_crop(sizes)
    _note_unusable(report, role, "label maps", faults, len(chosen))
    report.classes[role], report.class_images[role] = (
        Counter(dict(enumerate(row))) for row in pixels.tolist()
    )
    report.set(role, images=len(pairs))
    return [ListedImage(os.path.realpath(image)) for image, _ in pairs]


def _check_panoptic(
    values: Values, report: CheckReport, role: str, limit: int | None
) -> list[ListedImage]:
    files = _files(values, role, "json_file", "panoptic_root", "image_root")
    report.class_names = read_panoptic_json(files[0])[1].names
    report.unit = "segments"
    records = read_panoptic_records(*files)
    chosen = spread(records, limit or len(records))
    faults: list[str] = []
    for record in chosen:
        try:
            read_record_map(record, np.empty((record["height"], record["width"], 0)))
        except ValueError as error:
            faults.append(str(error))
    _note_unusable(report, role, "panoptic maps", faults, len(chosen))
    if role == "train":
        report.proposal = propose_resize(
            [
                (int(record["height"]), int(record["width"]), float(area))
                for record in records
                for segment in record["segments_info"]
                if is_number(area := segment.get("area")) and area > 0
            ]
        )
    segments = [[s["category_id"] for s in record["segments_info"]] for record in records]
    report.count_classes(role, segments)
    report.set(role, images=len(records), images_without_segments=segments.count([]))
    return [ListedImage(str(r["file_name"]), (r["height"], r["width"])) for r in records]


def _count_unlabelled(prepared: Prepared, report: CheckReport) -> None:
    path = prepared.folder / "splits.csv"
    with path.open(encoding="utf-8", newline="", errors="surrogateescape") as file:
        rows = Counter((row["role"], row["label file"]) for row in csv.DictReader(file))
    for role in ROLES:
        report.set(role, images_without_a_label_file=rows[role, "no"])


def check_dataset(
    prepared: Prepared, labels: LabelSettings, limit: int | None = None
) -> CheckReport:
    """Looks at the images and annotations of a data set.

    Annotations are all looked at. Of images and maps, which take minutes in a large data set, at
    most a number of evenly spread ones of each split are.

    Args:
        prepared: of `prepare`.
        labels: of label maps.
        limit: largest number of images; None for all.

    Raises:
        ValueError: a file contradicts itself so that it cannot be read.
    """
    report = CheckReport(prepared.format)
    values = prepared.values
    images: dict[str, list[ListedImage]] = {}
    for role in ROLES:
        if prepared.kind == "semantic":
            images[role] = _check_semantic(values, report, role, limit, labels)
        elif prepared.kind == "panoptic":
            images[role] = _check_panoptic(values, report, role, limit)
        else:
            images[role] = _check_instances(values, report, role)
    _count_unlabelled(prepared, report)
    check_images(report, images, limit)
    report.check_balance()
    return report


def check_once(prepared: Prepared, labels: LabelSettings) -> None:
    """Checks what a run would train on, unless this state of the folder has passed before.

    Raises:
        ValueError: training or evaluation would be wrong.
    """
    passed = prepared.folder / "check.md"
    if passed.is_file():
        return
    report = check_dataset(prepared, labels, _NUM_IMAGES_READ)
    logger.info("check of dataset.root=%s:\n%s", prepared.root, report.text())
    if report.refusals:
        raise ValueError(
            f"dataset.root={prepared.root}: {'; '.join(report.refusals)}. Mend it, leave files out "
            "by dataset.exclude=[...], or set dataset.check=False to train nevertheless"
        )
    for text in report.warnings:
        logger.warning("dataset.root=%s: %s", prepared.root, text)
    making = passed.with_suffix(".tmp")
    making.write_text(report.text(), encoding="utf-8", errors="surrogateescape")
    making.replace(passed)
