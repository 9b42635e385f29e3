"""Pascal VOC's xml files, one for each image."""

import math
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import cast
from xml.etree import ElementTree as ET

from vitadapter.data.folders.class_tables import find_class_names
from vitadapter.data.folders.found import (
    FoundDataset,
    FoundImage,
    check_most,
    fault_of,
    numbered,
    polygons_object,
    raise_faults,
    with_sizes,
)
from vitadapter.data.folders.listing import Listing, pair_labels, split_of

__all__ = ["listed_splits", "read_voc", "voc_files"]


def voc_files(listing: Listing) -> list[str]:
    """Files that show that the folder is in this format."""
    return next(([f] for f in listing.named(".xml") if b"<annotation" in listing.head(f, 4096)), [])


def listed_splits(listing: Listing, folder: str) -> dict[str, str]:
    """The split of the names that `ImageSets/FOLDER/{train,val,test}.txt` list."""
    splits: dict[str, str] = {}
    for name in listing.named(".txt"):
        path = PurePosixPath(name)
        split = split_of(path.name, by_name=True)
        if path.parts[-3:-1] == ("ImageSets", folder) and split == path.stem.lower():
            text = listing.path(name).read_text(encoding="utf-8-sig", errors="replace")
            for line in filter(None, map(str.strip, text.splitlines())):
                stem = line.split()[0] if folder == "Main" else line
                if splits.setdefault(stem, split) != split:
                    raise ValueError(f"{stem} is listed in two splits, {splits[stem]} and {split}")
    return splits


def _numbers(element: ET.Element, names: Iterable[str], what: str) -> list[float]:
    values = []
    for name in names:
        text = element.findtext(name) or ""
        try:
            values.append(float(text))
        except ValueError as error:
            raise ValueError(f"has {text!r:.20} as {name} of a {what}") from error
    if not all(map(math.isfinite, values)):
        raise ValueError(f"has a {what} that is not finite")
    return values


def _object(element: ET.Element) -> dict[str, object]:
    """An object with its corners as "corners", which may count from 1."""
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("has an object without a name")
    found: dict[str, object] = {"category_id": name}
    if (element.findtext("difficult") or "0").strip() == "1":
        found["iscrowd"] = 1
    polygon = element.find("polygon")
    if polygon is not None and len(polygon) >= 6:
        names = [axis + str(n) for n in range(1, len(polygon) // 2 + 1) for axis in "xy"]
        return {**found, **polygons_object([_numbers(polygon, names, "polygon")])}
    box = element.find("bndbox")
    if box is None:
        raise ValueError(f"has an object {name!r} without bndbox")
    return {**found, "corners": _numbers(box, ("xmin", "ymin", "xmax", "ymax"), "box")}


def _read_file(listing: Listing, name: str) -> list[dict[str, object]]:
    try:
        root = ET.fromstring(listing.path(name).read_bytes())
    except (ET.ParseError, ValueError, RecursionError) as error:
        raise ValueError(f"is not xml ({error})") from error
    return [_object(element) for element in root.iter("object")]


def _set_boxes(images: Iterable[FoundImage]) -> None:
    """From corners to boxes.

    Pascal VOC counts pixels from 1 and the last one belongs to the box. Corners at 0 or between
    pixels show that the program that has written the data set does not: it means coordinates.
    """
    objects = [a for image in images for a in image.annotations or () if "corners" in a]
    corners = [cast(list[float], found.pop("corners")) for found in objects]  # as `_object` has it
    values = [value for four in corners for value in four]
    first = 1 if all(value.is_integer() and value >= 1 for value in values) else 0
    for found, (left, top, right, bottom) in zip(objects, corners, strict=True):
        width, height = right - left + first, bottom - top + first
        found["bbox"] = [left - first, top - first, width, height]
        found["area"] = max(0.0, width) * max(0.0, height)


def read_voc(listing: Listing) -> FoundDataset:
    """Reads xml files, whose difficult objects become crowds: neither trained nor evaluated.

    Classes are the names in `classes.txt` or another table, or else those that occur, by alphabet.
    Objects with a `polygon`, as Roboflow writes them, have a mask. Splits are the lists in
    `ImageSets/Main`, or folders.

    Raises:
        ValueError: faults in label files, or label files that mostly lack their image.
    """
    labels = listing.named(".xml")
    pairs, strays = pair_labels(listing.images, labels)
    check_most("label files without an image", strays, len(labels), "set another dataset.root=...")
    listed = listed_splits(listing, "Main")
    images = []
    for file in listing.images:
        split = listed.get(PurePosixPath(file).stem) if listed else split_of(file)
        images.append(FoundImage(file, split, label=pairs.get(file)))
    images = with_sizes(listing, images)
    faults = []
    for image in images:
        if image.label is not None:
            try:
                image.annotations = _read_file(listing, image.label)
            except ValueError as error:
                faults.append(fault_of(listing, image.label, error))
    raise_faults("Pascal VOC", faults)
    _set_boxes(images)
    return numbered("Pascal VOC", images, find_class_names(listing))
