"""Overlapping tiles of a large image, and which of their findings are one object."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

from detectron2.utils.logger import log_first_n

from vitadapter.encoded_masks import Region

from .sliding_window import window_starts

__all__ = [
    "PART",
    "Box",
    "Match",
    "Tile",
    "Tiles",
    "group_across_tiles",
    "joint_box",
    "overlaps",
    "parts_of_others",
    "sees",
]


# Each tile is a prediction: more are a mistaken size or overlap more often than a large image.
_MOST = 4096


class Tile(NamedTuple):
    """A part of an image."""

    region: Region
    """What is predicted."""
    core: Region
    """The pixels that lie deeper inside of this tile than of any other: those of all tiles make up
    the image."""


@dataclass(frozen=True)
class Tiles:
    """How large images are predicted: in square tiles, whose findings are merged.

    Args:
        size: side of a tile in pixels of the image. Each tile is prepared as a test image is,
            so that objects are as large for the model as in images of this size.
        overlap: of neighbouring tiles, as a fraction of their side, in [0, 1). Objects up to the
            size of the overlap are seen whole in one tile at least; without any, an object across
            a border becomes several, and a warning says so.
        iou_threshold: findings of two tiles are one object if they have the same class and, in what
            both tiles see, at least this intersection over union, in (0, 1].
        batch_size: number of tiles that are predicted at once.

    Raises:
        ValueError: a value is outside its range.
    """

    size: int
    overlap: float = 0.2
    iou_threshold: float = 0.5
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name in ("size", "batch_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"the {name} of tiles must be a positive integer, got {value!r}")
        for name in ("overlap", "iou_threshold"):
            value = getattr(self, name)
            if type(value) not in (int, float):
                raise ValueError(f"the {name} of tiles must be a number, got {value!r}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"the overlap of tiles must be in [0, 1), got {self.overlap}")
        if not 0 < self.iou_threshold <= 1:
            raise ValueError(
                f"the iou_threshold of tiles must be in (0, 1], got {self.iou_threshold}"
            )

    def warn_if_nothing_is_shared(self) -> None:
        """Warns once of tiles side by side, across whose borders no object can be joined."""
        if round(self.size * self.overlap) < 1:
            log_first_n(
                logging.WARNING,
                f"tiles of {self.size} pixels with an overlap of {self.overlap} share no pixel: an "
                "object across a border becomes several. Only mosaics of separate images, and "
                "label maps, need no overlap",
                key="message",
                name=__name__,
            )

    def _spans(self, length: int) -> list[tuple[int, int, int, int]]:
        """First pixel and end of each tile along a side, and of its core."""
        size = min(self.size, length)
        stride = max(self.size - round(self.size * self.overlap), 1)
        starts = window_starts(length, self.size, stride)
        borders = [(start + size + following) // 2 for start, following in pairwise(starts)]
        return [
            (start, start + size, *core)
            for start, core in zip(
                starts, zip([0, *borders], [*borders, length], strict=True), strict=True
            )
        ]

    def of(self, height: int, width: int) -> list[Tile]:
        """The tiles of an image, row by row; one if the image is not larger than a tile.

        Raises:
            ValueError: there would be too many.
        """
        rows, columns = self._spans(height), self._spans(width)
        number = len(rows) * len(columns)
        if number > _MOST:
            raise ValueError(
                f"an image has at most {_MOST} tiles, got {number} of {self.size} pixels with an "
                f"overlap of {self.overlap} for {height} x {width} pixels: take larger tiles or a "
                "smaller overlap"
            )
        return [
            Tile((x0, y0, x1, y1), (left, top, right, bottom))
            for (y0, y1, top, bottom), (x0, x1, left, right) in product(rows, columns)
        ]


class Match(NamedTuple):
    """Two findings of different tiles that may be one object."""

    weight: float
    """Better matches have a larger one."""
    first: int
    second: int


Span = tuple[int, int]
"""First pixel and end along a side of the image."""


def _common_spans(spans: Iterable[Span]) -> Iterator[tuple[Span, Span]]:
    """Each span with itself and with each later one that begins before its end."""
    ordered = sorted(set(spans))
    for number, first in enumerate(ordered):
        for second in ordered[number:]:
            if second[0] >= first[1]:
                break
            yield first, second


def overlaps(tiles: Sequence[Tile]) -> Iterator[tuple[int, int, Region]]:
    """The numbers of each two tiles of an image that overlap, and what both see."""
    numbers = {tile.region: number for number, tile in enumerate(tiles)}

    def number_of(row: Span, column: Span) -> int:
        return numbers[column[0], row[0], column[1], row[1]]

    columns = list(_common_spans((x0, x1) for x0, _, x1, _ in numbers))
    for above, below in _common_spans((y0, y1) for _, y0, _, y1 in numbers):
        for left, right in columns:
            common = right[0], below[0], left[1], above[1]
            if (above, left) != (below, right):
                yield number_of(above, left), number_of(below, right), common
            if above != below and left != right:
                yield number_of(above, right), number_of(below, left), common


def group_across_tiles(matches: Iterable[Match], tile_of: Sequence[int]) -> list[list[int]]:
    """Joins findings to objects, the best matches first.

    What one tile tells apart stays apart: no two findings of a tile are in one group.

    Args:
        matches: pairs of findings, by number.
        tile_of: the number of the tile of each finding.

    Returns:
        The findings of each object.
    """
    group_of = list(range(len(tile_of)))
    members = [[number] for number in group_of]
    for match in sorted(matches, reverse=True):
        first, second = group_of[match.first], group_of[match.second]
        seen = {tile_of[number] for number in members[first]}
        if first == second or any(tile_of[number] in seen for number in members[second]):
            continue
        for number in members[second]:
            group_of[number] = first
        members[first] += members[second]
    groups: dict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(group_of):
        groups[group].append(number)
    return list(groups.values())


Box = Sequence[float]
"""(x0, y0, x1, y1) in pixels of the image."""

# A part of an object lies inside of it up to errors of its outline; neighbours only reach into it.
PART = 0.8
"""The fraction of a finding that lies inside of what it may be a part of, at least."""


def sees(tile: Tile, box: Box) -> bool:
    """Whether a box lies in a tile."""
    x0, y0, x1, y1 = tile.region
    return x0 <= box[0] and y0 <= box[1] and box[2] <= x1 and box[3] <= y1


def joint_box(boxes: Iterable[Box]) -> Box:
    """Around some boxes."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def parts_of_others(
    groups: Sequence[Sequence[int]],
    inside: Iterable[tuple[int, int]],
    boxes: Sequence[Box],
    tile_of: Sequence[int],
    tiles: Sequence[Tile],
) -> dict[int, int]:
    """Objects that are parts of others.

    An object is a part of a larger one if a tile that sees all of the part has found the larger one
    alone, while the tiles that have found the part see less of the larger one.

    Args:
        groups: of `group_across_tiles`.
        inside: pairs of findings of two tiles; the first one lies inside the second one, as
            `PART` says, in what both tiles see.
        boxes: of each finding.
        tile_of: the number of the tile of each finding.
        tiles: of the image.

    Returns:
        From the number of a group that is a part to that of the group that it is a part of.
    """
    group_of = {index: number for number, group in enumerate(groups) for index in group}
    around = [joint_box(boxes[index] for index in group) for group in groups]
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in around]
    seen_by = [{tile_of[index] for index in group} for group in groups]
    # Which findings of a group say that it is a part of another.
    agreeing: dict[tuple[int, int], set[int]] = defaultdict(set)
    for part, whole in inside:
        one, other = group_of[part], group_of[whole]
        tile = tile_of[whole]
        if (
            areas[one] < areas[other]
            and tile not in seen_by[one]
            and sees(tiles[tile], around[one])
            and not any(sees(tiles[number], around[other]) for number in seen_by[one])
        ):
            agreeing[one, other].add(part)
    return {
        one: other for (one, other), found in agreeing.items() if len(found) == len(groups[one])
    }
