"""Label maps and panoptic maps of overlapping tiles become those of the image."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitadapter.encoded_masks import index_in

from .tiles import Match, Tile, Tiles, group_across_tiles, overlaps

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


class TiledSegments:
    """Collects the "panoptic_seg" of tiles and merges them.

    Stuff is one segment of each class. Things of two tiles are one segment if they agree in what
    both tiles see. Each pixel is taken from the tile in which it lies deepest.

    Args:
        tiles: of the image.
        image_size: (height, width).
        settings: of the tiles.
    """

    def __init__(self, tiles: Sequence[Tile], image_size: tuple[int, int], settings: Tiles) -> None:
        self._tiles = tiles
        self._image_size = image_size
        self._settings = settings
        self._maps: dict[int, np.ndarray] = {}
        self._segments: list[Segment] = []
        self._tile_of: list[int] = []

    def add(self, number: int, output: tuple[Tensor, Sequence[Segment]]) -> None:
        """Takes the map (h, w) of ids and the segments of a tile by its number."""
        ids, segments = output
        # The numbers of segments of all tiles, from 1, in place of the ids in this tile.
        table = np.zeros(max([0, *(s["id"] for s in segments)]) + 1, np.int32)
        for following, segment in enumerate(segments, start=len(self._segments) + 1):
            table[segment["id"]] = following
        self._maps[number] = table[ids.numpy(force=True)]
        self._segments += segments
        self._tile_of += [number] * len(segments)

    def _matches(self) -> Iterator[Match]:
        for i, j, region in overlaps(self._tiles):
            first, second = (self._maps[n][index_in(self._tiles[n].region, region)] for n in (i, j))
            first_areas, second_areas = (
                dict(zip(*np.unique(part, return_counts=True), strict=True))
                for part in (first, second)
            )
            stacked = np.stack([first.ravel(), second.ravel()])
            pairs, counts = np.unique(stacked[:, stacked.all(0)], axis=1, return_counts=True)
            for (a, b), both in zip(pairs.T.tolist(), counts.tolist(), strict=True):
                one, other = self._segments[a - 1], self._segments[b - 1]
                iou = both / (first_areas[a] + second_areas[b] - both)
                if (
                    one["isthing"]
                    and one["category_id"] == other["category_id"]
                    and iou >= self._settings.iou_threshold
                ):
                    score = min(one.get("score", 1.0), other.get("score", 1.0))
                    yield Match(score * iou, a - 1, b - 1)

    def _groups(self) -> list[list[int]]:
        """The parts of each segment of the image."""
        stuff: dict[int, list[int]] = {}
        things = []
        for group in group_across_tiles(self._matches(), self._tile_of):
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
        height, width = self._image_size
        ids = np.zeros((height, width), np.int32)
        for number, tile in enumerate(self._tiles):
            core = self._maps[number][index_in(tile.region, tile.core)]
            ids[index_in((0, 0, width, height), tile.core)] = table[core]
        # What lies only in the margins of tiles has no pixel.
        left = np.flatnonzero(np.bincount(ids.ravel(), minlength=len(groups) + 1)[1:])
        renumbered = np.zeros(len(groups) + 1, np.int32)
        renumbered[left + 1] = np.arange(1, len(left) + 1)
        segments = []
        for id_, number in enumerate(left.tolist(), start=1):
            parts = [self._segments[index] for index in groups[number]]
            best = max(parts, key=lambda part: part.get("score", 1.0))
            segments.append({**{key: best[key] for key in _KEYS if key in best}, "id": id_})
        return torch.from_numpy(renumbered[ids]), segments
