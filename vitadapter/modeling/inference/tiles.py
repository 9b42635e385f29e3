"""Overlapping tiles of a large image, and which of their findings are one object."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from typing import NamedTuple

from vitadapter.encoded_masks import Region, intersection

from .sliding_window import window_starts

__all__ = ["Match", "Tile", "Tiles", "group_across_tiles", "overlaps"]


# Each tile is compared with each other one: beyond this, that takes longer than to predict them.
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
            size of the overlap are seen whole in one tile at least.
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


def overlaps(tiles: Sequence[Tile]) -> Iterable[tuple[int, int, Region]]:
    """The numbers of each two tiles that overlap, and what both see."""
    for (i, first), (j, second) in combinations(enumerate(tiles), 2):
        common = intersection(first.region, second.region)
        if common is not None:
            yield i, j, common


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
