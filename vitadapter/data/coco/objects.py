"""Checks boxes and masks of annotations before they reach pycocotools' C code, which trusts them.

A polygon that is not finite or lies 1e8 pixels away makes it hang or end the process. If the runs
of a mask do not add up to the image, it reads and writes beyond its memory.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from operator import mul
from typing import TypeGuard

import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from vitadapter.data.coco.json_entries import Entry, flag
from vitadapter.data.dataset_source import Annotation

__all__ = ["all_numbers", "checked_object", "is_number", "usable_mask"]

# As a multiple of the image's longer side: after crops of large images, objects reach far beyond
# the image.
_FARTHEST_SIDES = 10
# In pixels. pycocotools follows an edge in steps of a fifth of a pixel, here in 0.2 seconds.
_FARTHEST = 1_000_000
# For a number in an RLE string, with 5 bits each: enough for runs of 2^31 pixels and a sign.
_MAX_CHARACTERS = 7

# pycocotools does not count larger objects.
_MAX_AREA = 1e10

_NO_BOX = "dropped annotations whose box has no area in the image"
_NO_AREA = "took the area of the box for annotations whose area is not a number from 0 to 1e10"
_SHORT = "dropped polygons with fewer than three points, or an odd number of coordinates"
_FAR = (
    f"dropped polygons that are not finite, or farther away than {_FARTHEST_SIDES} times the "
    "longer side of the image"
)
_EMPTY = "dropped masks without a pixel"
_UNFINISHED = "completed RLE masks with the background that is missing at their end"


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, including NaN and infinity but not `True`."""
    return isinstance(value, Real) and not isinstance(value, bool)


def all_numbers(values: Sequence[object]) -> TypeGuard[Sequence[float]]:
    """Whether `is_number` holds for all."""
    if set(map(type, values)) <= {int, float}:  # quick, for what json holds
        return True
    return all(map(is_number, values))


def _farthest(size: tuple[int, int]) -> float:
    """How far from the origin an object of an image of `size` may reach, in pixels."""
    return min(_FARTHEST_SIDES * max(size), _FARTHEST)


def usable_mask(
    segmentation: object, size: tuple[int, int], note: Callable[[str], None]
) -> list[Sequence[float]] | dict[str, object] | None:
    """A mask as Detectron2 and pycocotools take it; None if there is none that can be used.

    Args:
        segmentation: list of polygons, RLE (compressed or not), or None.
        size: (height, width) of the image.
        note: called with what was mended or dropped, a text with "{}" for the number.

    Returns:
        Polygons with at least three points that are near the image, or compressed RLE.

    Raises:
        ValueError: it is neither polygons nor RLE, or an RLE that does not fit the image.
    """
    if not isinstance(segmentation, Mapping | list | tuple | None):
        raise ValueError(
            f"must have a list of polygons, or an RLE, as segmentation, got {segmentation!r:.80}"
        )
    if not segmentation:
        return None
    if isinstance(segmentation, Mapping):
        return _usable_rle(segmentation, size, note)
    return _usable_polygons(segmentation, size, note)


def _usable_polygons(
    polygons: Sequence[object], size: tuple[int, int], note: Callable[[str], None]
) -> list[Sequence[float]] | None:
    limit = _farthest(size)
    kept: list[Sequence[float]] = []
    area = extent = 0.0
    for polygon in polygons:
        p = polygon.ravel().tolist() if isinstance(polygon, np.ndarray) else polygon
        if not isinstance(p, list | tuple) or not all_numbers(p):
            raise ValueError(
                f"must have flat lists [x1, y1, x2, y2, ...] of numbers as polygons, got {p!r:.80}"
            )
        if len(p) < 6 or len(p) % 2:
            note(_SHORT)
            continue
        x, y = p[0::2], p[1::2]
        left, right, top, bottom = min(x), max(x), min(y), max(y)
        far = not all(-limit <= end <= limit for end in (left, right, top, bottom))
        # Comparisons and extremes can miss a NaN among other numbers, but their sum is NaN too.
        if far or math.isnan(sum(p)):
            note(_FAR)
            continue
        kept.append(p)
        if left >= 0 and right <= size[1] and top >= 0 and bottom <= size[0]:
            doubled = sum(map(mul, x, y[1:])) - sum(map(mul, y, x[1:]))
            area += abs(doubled + x[-1] * y[0] - y[-1] * x[0])
            extent += right - left + bottom - top
    # A polygon inside the image that is thicker than a pixel has pixels. Others are rasterised.
    if kept and area <= 2 * extent and not mask_util.area(mask_util.frPyObjects(kept, *size)).any():
        note(_EMPTY)
        return None
    return kept or None


def _usable_rle(
    rle: Mapping[str, object], size: tuple[int, int], note: Callable[[str], None]
) -> dict[str, object] | None:
    found, counts = rle.get("size"), rle.get("counts")
    if not isinstance(found, list | tuple) or list(found) != list(size):
        raise ValueError(f"has a mask of the size {found}, but its image has {list(size)}")
    runs = _listed_runs(counts) if isinstance(counts, list | tuple) else _packed_runs(counts)
    pixels = size[0] * size[1]
    if runs.size and not 0 <= runs.min() <= runs.max() <= pixels:
        raise ValueError(f"has an RLE mask with a run of {runs.min()} or {runs.max()} pixels")
    missing = pixels - int(runs.sum())
    # Some encoders stop at the last foreground run.
    unfinished = missing > 0 and len(runs) % 2 == 0
    if missing and not unfinished:
        raise ValueError(
            f"has an RLE mask whose counts add up to {pixels - missing} pixels, not to the "
            f"{pixels} of the image"
        )
    if not runs[1::2].any():
        note(_EMPTY)
        return None
    if unfinished:
        note(_UNFINISHED)
        runs = np.append(runs, missing)
    elif isinstance(counts, str | bytes):
        return {"size": list(size), "counts": counts}
    return mask_util.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)


def _listed_runs(counts: Sequence[object]) -> np.ndarray:
    try:
        if all(type(count) is int for count in counts):
            return np.array(counts, dtype=np.int64)
    except OverflowError:
        pass
    raise ValueError(f"must have whole numbers as the counts of an RLE mask, got {counts!r:.80}")


def _packed_runs(counts: object) -> np.ndarray:
    """The runs that pycocotools reads from a string of their differences in 5-bit groups."""
    rule = (
        f"must have a string of pycocotools, or a list, as the counts of an RLE, got {counts!r:.80}"
    )
    if not isinstance(counts, str | bytes) or (isinstance(counts, str) and not counts.isascii()):
        raise ValueError(rule)
    packed = counts.encode() if isinstance(counts, str) else counts
    groups = np.frombuffer(packed, np.uint8).astype(np.int64) - ord("0")
    if not groups.size:
        return groups
    # The sixth bit says that another group of the same number follows.
    if groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        raise ValueError(rule)
    ends = np.flatnonzero(groups & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        raise ValueError(rule)
    places = np.arange(len(groups)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((groups & 31) << 5 * places, starts)
    runs -= np.where(groups[ends] & 16, 1 << 5 * lengths, 0)  # two's complement
    # From the fourth run on, each number is the difference to the run before the last.
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def checked_object(
    annotation: Entry, size: tuple[int, int], note: Callable[[str], None]
) -> Annotation | None:
    """The fields of an annotation that do not depend on others.

    If `area` is missing, it becomes that of the box; if `iscrowd` is missing, it becomes 0. A mask
    that cannot be used is left out.

    Args:
        annotation: with its "bbox" in XYWH_ABS.
        size: (height, width) of the image.
        note: called with what was mended or dropped, a text with "{}" for the number.

    Returns:
        All fields but "category_id", with "segmentation" if there is a mask; None if
        the box has no area in the image, so that no model could find the object.

    Raises:
        ValueError: a field has the wrong type, or is out of range.
    """
    box = annotation.get("bbox")
    if not isinstance(box, list | tuple) or len(box) != 4 or not all_numbers(box):
        raise ValueError(f"must have a box of 4 numbers as bbox, got {box!r:.80}")
    if annotation.get("ignore"):
        raise ValueError('must not have "ignore": objects to ignore have "iscrowd": 1')
    crowd = flag(annotation, "iscrowd")
    limit = _farthest(size)
    x, y, w, h = box
    # Comparisons that are false for NaN.
    near = all(-limit <= value <= limit for value in (x, y, w, h))
    if not (near and w > 0 and h > 0 and -w < x < size[1] and -h < y < size[0]):
        note(_NO_BOX)
        return None
    area = annotation.get("area")
    if not is_number(area) or not 0 <= area <= _MAX_AREA:
        if area is not None:
            note(_NO_AREA)
        area = w * h
    checked: Annotation = {
        "bbox": box,
        "bbox_mode": BoxMode.XYWH_ABS,
        "iscrowd": crowd,
        "area": area,
    }
    mask = usable_mask(annotation.get("segmentation"), size, note)
    if mask is not None:
        checked["segmentation"] = mask
    return checked
