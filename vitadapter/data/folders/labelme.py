"""labelme's json files, one for each image."""

import base64
import io
import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

from vitadapter.data.coco.json_entries import Findings, check_image, read_json
from vitadapter.data.coco.objects import all_numbers
from vitadapter.data.folders.class_tables import NO_OBJECTS, find_class_names
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

__all__ = ["labelme_files", "read_labelme"]

logger = logging.getLogger(__name__)

# Of the polygon that stands for a circle.
_CIRCLE_POINTS = 32
_NO_AREA = "left out shapes without area (points and lines)"


def labelme_files(listing: Listing) -> list[str]:
    """Files that show that the folder is in this format."""
    return next(([f] for f in listing.named(".json") if _is_labelme(listing, f)), [])


def _is_labelme(listing: Listing, name: str) -> bool:
    head = listing.head(name)
    return b'"shapes"' in head or b'"imagePath"' in head


def _points(shape: Mapping[str, object]) -> list[list[float]]:
    points = shape.get("points")
    if not isinstance(points, list) or not points:
        raise ValueError(f"has a shape {shape.get('label')!r:.40} without points")
    for point in points:
        whole = isinstance(point, list) and len(point) == 2 and all_numbers(point)
        if not whole or not all(map(math.isfinite, point)):
            raise ValueError(f"has a point {point!r:.40} that is not two numbers")
    return points


def _circle(centre: Sequence[float], rim: Sequence[float]) -> list[float]:
    radius = math.dist(centre, rim)
    angles = (2 * math.pi * n / _CIRCLE_POINTS for n in range(_CIRCLE_POINTS))
    return [
        v
        for a in angles
        for v in (centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a))
    ]


def _mask(shape: Mapping[str, object], size: tuple[int, int]) -> dict[str, object]:
    """A shape that is a PNG image of its box, as RLE of the whole image."""
    (left, top), *_ = (map(round, point) for point in _points(shape))
    try:
        with Image.open(io.BytesIO(base64.b64decode(str(shape.get("mask"))))) as image:
            part = np.asarray(image.convert("L")) > 0
    except Exception as error:  # of a broken PNG Pillow raises nearly anything
        raise ValueError(f"has a mask that is no PNG ({error})") from error
    whole = np.zeros(size, dtype=np.uint8)
    if left < 0 or top < 0 or left + part.shape[1] > size[1] or top + part.shape[0] > size[0]:
        raise ValueError("has a mask that reaches out of its image")
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    rle = mask_util.encode(np.asfortranarray(whole))
    box, area = mask_util.toBbox(rle).tolist(), float(mask_util.area(rle))
    counts = rle["counts"].decode()
    return {"bbox": box, "area": area, "segmentation": {"size": list(size), "counts": counts}}


def _region(
    shape: Mapping[str, object], size: tuple[int, int]
) -> tuple[dict[str, object] | None, list[float] | None]:
    """The box or mask of a shape, or its polygon; neither of a point or line."""
    kind = shape.get("shape_type") or "polygon"
    points = _points(shape)
    if kind == "mask":
        return _mask(shape, size), None
    if kind == "rectangle" and len(points) in (2, 4):
        x, y = [p[0] for p in points], [p[1] for p in points]
        width, height = max(x) - min(x), max(y) - min(y)
        return {"bbox": [min(x), min(y), width, height], "area": width * height}, None
    if kind == "circle" and len(points) == 2:
        return None, _circle(*points)
    if kind in ("polygon", "oriented_rectangle") and len(points) >= 3:
        return None, [value for point in points for value in point]
    return None, None


def _objects(
    content: object, size: tuple[int, int], file: str, findings: Findings
) -> list[dict[str, object]]:
    """The objects of a file; polygons of one group and label are one object of several parts."""
    shapes = content.get("shapes") if isinstance(content, Mapping) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, Mapping) for shape in shapes):
        raise ValueError("has no list of shapes")
    objects: list[dict[str, object]] = []
    parts: dict[tuple[str, str], list[list[float]]] = {}
    for number, shape in enumerate(shapes):
        label, group = shape.get("label"), shape.get("group_id")
        if not isinstance(label, str) or not label:
            raise ValueError(f"has a shape with the label {label!r:.40}")
        if label in NO_OBJECTS:
            continue
        found, polygon = _region(shape, size)
        if polygon is not None:
            key = f"group {group}" if group is not None else f"shape {number}"
            parts.setdefault((label, key), []).append(polygon)
        elif found is not None:
            objects.append({**found, "category_id": label})
        else:
            findings.add(_NO_AREA, f"{shape.get('shape_type')} {label!r} of {file}")
    for (label, _), polygons in parts.items():
        objects.append({**polygons_object(polygons), "category_id": label})
    return objects


def _label_files(listing: Listing, found: Mapping[str, str]) -> list[str]:
    """The json files that belong to an image, or could."""
    own = set(found.values())
    return [f for f in listing.named(".json") if f in own or _is_labelme(listing, f)]


def read_labelme(listing: Listing) -> FoundDataset:
    """Reads polygons, circles and masks; rectangles are boxes without a mask.

    Classes are the names in `labels.txt` or another table, or else those that occur, by alphabet.
    Polygons of one `group_id` and label are one object, as in labelme's own converters. Points and
    lines are left out.

    Raises:
        ValueError: faults in label files, or label files that mostly lack their image.
    """
    pairs, _strays = pair_labels(listing.images, listing.named(".json"))
    labels = _label_files(listing, pairs)
    strays = sorted(set(labels) - set(pairs.values()))
    check_most("label files without an image", strays, len(labels), "set another dataset.root=...")
    images = [FoundImage(f, split_of(f), label=pairs.get(f)) for f in listing.images]
    images = with_sizes(listing, images)
    findings = Findings()
    faults = []
    for image in images:
        if image.label is not None:
            try:
                size = check_image(image.entry)
                content = read_json(listing.path(image.label))
                image.annotations = _objects(content, size, image.file, findings)
            except ValueError as error:
                faults.append(fault_of(listing, image.label, error))
    raise_faults("labelme", faults)
    findings.warn(logger, "dataset.root")
    return numbered("labelme", images, find_class_names(listing))
