"""Label maps and panoptic maps of overlapping tiles become those of the image."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import find_objects
from torch import Tensor

from vitadapter.encoded_masks import Region, index_in

from .tiles import PART, Box, Match, Tile, Tiles, group_across_tiles, overlaps, parts_of_others

__all__ = ["TiledLabels", "TiledSegments"]

Segment = Mapping[str, Any]
# Of a segment, in Detectron2's format. Others, such as the area, are those of a part.
_KEYS = ("id", "isthing", "category_id", "score")


class TiledLabels:
    """Takes the class of each pixel from the tile in which it lies deepest.

    Class scores (K, H, W) of a large image would have gigabytes: only those of a tile exist.

    Args:
        tiles: of the image.
        image_size: (height, width).
        settings: of the tiles; not needed.
    """

    def __init__(self, tiles: Sequence[Tile], image_size: tuple[int, int], settings: Tiles) -> None:
        self._tiles = tiles
        self._labels = torch.zeros(image_size, dtype=torch.int16)

    def add(self, number: int, scores: Tensor) -> None:
        """Takes the "sem_seg" (K, h, w) of a tile by its number."""
        tile = self._tiles[number]
        height, width = self._labels.shape
        labels = scores.movedim(0, -1)[index_in(tile.region, tile.core)].argmax(-1)
        self._labels[index_in((0, 0, width, height), tile.core)] = labels.to(self._labels)

    def merged(self) -> Tensor:
        """The label map (H, W) int16, on the CPU."""
        return self._labels


def _boxes_of(ids: np.ndarray, region: Region, before: int, count: int) -> list[Box]:
    """The boxes of the segments before + 1 to before + count, whose ids (h, w) a tile has."""
    x, y = region[:2]
    found = find_objects(np.where(ids > 0, ids - before, 0), max_label=count)
    return [
        (x, y, x, y)
        if place is None
        else (x + place[1].start, y + place[0].start, x + place[1].stop, y + place[0].stop)
        for place in found
    ]


class TiledSegments:
    """Collects the "panoptic_seg" of tiles and merges them.

    Stuff is one segment of each class. Things of two tiles are one segment if they agree in what
    both tiles see, or one is a part of the other, as `parts_of_others` says. Each pixel is taken
    from the tile in which it lies deepest.

    The map of a tile is kept until the last tile that overlaps with it has been added.

    Args:
        tiles: of the image.
        image_size: (height, width).
        settings: of the tiles.
    """

    def __init__(self, tiles: Sequence[Tile], image_size: tuple[int, int], settings: Tiles) -> None:
        settings.warn_if_nothing_is_shared()
        self._tiles = tiles
        self._settings = settings
        self._ids = np.zeros(image_size, np.int32)
        self._maps: dict[int, np.ndarray] = {}
        self._earlier: dict[int, list[tuple[int, Region]]] = defaultdict(list)
        self._last = list(range(len(tiles)))
        for i, j, region in overlaps(tiles):
            self._earlier[j].append((i, region))
            self._last[i] = max(self._last[i], j)
        self._segments: list[Segment] = []
        self._tile_of: list[int] = []
        self._boxes: list[Box] = []
        self._matches: list[Match] = []
        self._inside: list[tuple[int, int]] = []

    def add(self, number: int, output: tuple[Tensor, Sequence[Segment]]) -> None:
        """Takes the map (h, w) of ids and the segments of a tile by its number, in their order."""
        ids, segments = output
        tile = self._tiles[number]
        # The numbers of segments of all tiles, from 1, in place of the ids in this tile.
        table = np.zeros(max([0, *(s["id"] for s in segments)]) + 1, np.int32)
        for following, segment in enumerate(segments, start=len(self._segments) + 1):
            table[segment["id"]] = following
        self._maps[number] = table[ids.numpy(force=True)]
        self._boxes += _boxes_of(
            self._maps[number], tile.region, len(self._segments), len(segments)
        )
        self._segments += segments
        self._tile_of += [number] * len(segments)
        height, width = self._ids.shape
        core = self._maps[number][index_in(tile.region, tile.core)]
        self._ids[index_in((0, 0, width, height), tile.core)] = core
        for other, region in self._earlier.pop(number, ()):
            self._compare(other, number, region)
        self._maps = {n: ids for n, ids in self._maps.items() if self._last[n] > number}

    def _compare(self, i: int, j: int, region: Region) -> None:
        """Notes which things of two tiles may be one, or a part of another."""
        first, second = (self._maps[n][index_in(self._tiles[n].region, region)] for n in (i, j))
        first_areas, second_areas = (
            dict(zip(*np.unique(part, return_counts=True), strict=True)) for part in (first, second)
        )
        stacked = np.stack([first.ravel(), second.ravel()])
        pairs, counts = np.unique(stacked[:, stacked.all(0)], axis=1, return_counts=True)
        for (a, b), both in zip(pairs.T.tolist(), counts.tolist(), strict=True):
            one, other = self._segments[a - 1], self._segments[b - 1]
            if not one["isthing"] or one["category_id"] != other["category_id"]:
                continue
            iou = both / (first_areas[a] + second_areas[b] - both)
            if iou >= self._settings.iou_threshold:
                score = min(one.get("score", 1.0), other.get("score", 1.0))
                self._matches.append(Match(score * iou, a - 1, b - 1))
            if both >= PART * first_areas[a]:
                self._inside.append((a - 1, b - 1))
            if both >= PART * second_areas[b]:
                self._inside.append((b - 1, a - 1))

    def _groups(self) -> list[list[int]]:
        """The parts of each segment of the image."""
        groups = group_across_tiles(self._matches, self._tile_of)
        parts = parts_of_others(groups, self._inside, self._boxes, self._tile_of, self._tiles)
        for number, whole in parts.items():
            while whole in parts:  # ends, since each is larger than the one before
                whole = parts[whole]
            groups[whole] += groups[number]
        stuff: dict[int, list[int]] = {}
        things = []
        for group in (group for number, group in enumerate(groups) if number not in parts):
            segment = self._segments[group[0]]
            if segment["isthing"]:
                things.append(group)
            else:
                stuff.setdefault(segment["category_id"], []).extend(group)
        return [*things, *stuff.values()]

    def merged(self) -> tuple[Tensor, list[dict[str, Any]]]:
        """The map of ids (H, W) int32, 0 for none, and the segments, on the CPU.

        A segment has the best score of its parts.
        """
        groups = self._groups()
        table = np.zeros(len(self._segments) + 1, np.int32)
        for number, group in enumerate(groups, start=1):
            table[np.array(group) + 1] = number
        # Row by row: the whole map would be copied.
        is_left = np.zeros(len(groups) + 1, bool)
        for row in self._ids:
            row[:] = table[row]
            is_left[row] = True
        # What lies only in the margins of tiles has no pixel.
        left = np.flatnonzero(is_left[1:])
        renumbered = np.zeros(len(groups) + 1, np.int32)
        renumbered[left + 1] = np.arange(1, len(left) + 1)
        for row in self._ids:
            row[:] = renumbered[row]
        segments = []
        for id_, number in enumerate(left.tolist(), start=1):
            parts = [self._segments[index] for index in groups[number]]
            best = max(parts, key=lambda part: part.get("score", 1.0))
            segments.append({**{key: best[key] for key in _KEYS if key in best}, "id": id_})
        return torch.from_numpy(self._ids), segments
