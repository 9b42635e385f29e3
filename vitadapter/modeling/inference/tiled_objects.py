"""Detections of overlapping tiles become those of the image."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import pairwise_intersection
from torch import Tensor

from vitadapter.encoded_masks import EncodedMasks, MaskCrop, Region, encode_union

from .tiles import (
    PART,
    Box,
    Match,
    Tile,
    Tiles,
    group_across_tiles,
    joint_box,
    overlaps,
    parts_of_others,
    sees,
)

__all__ = ["TiledObjects"]

_FIELDS = {"pred_boxes", "pred_classes", "pred_masks", "scores"}
# An object may be cut if it comes so close to a tile's border, as a fraction of the tile's side.
_MARGIN = 0.01


class TiledObjects:
    """Collects the "instances" of tiles and merges them.

    - An object that its tile's border cuts is left to another tile, if one sees more around it and
      has found it too.
    - Detections of two tiles are one object if they agree in what both tiles see.
    - What is a part of another object, as `parts_of_others` says, is left out.
    - Of such detections, the best one of those tiles that see the whole object is taken. If no
      tile does, the object has their joint box, their joint mask and their best score.

    Args:
        tiles: of the image.
        image_size: (height, width).
        settings: of the tiles.
    """

    def __init__(self, tiles: Sequence[Tile], image_size: tuple[int, int], settings: Tiles) -> None:
        settings.warn_if_nothing_is_shared()
        self._tiles = tiles
        self._image_size = image_size
        self._settings = settings
        self._boxes = torch.zeros(0, 4)
        self._scores = torch.zeros(0)
        self._classes = torch.zeros(0, dtype=torch.int64)
        self._tile_of = torch.zeros(0, dtype=torch.int64)
        self._masks: list[MaskCrop] | None = None
        self._added: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, number: int, instances: Instances) -> None:
        """Takes what is found in a tile.

        Args:
            number: of the tile.
            instances: in its pixels, with "pred_boxes", "scores", "pred_classes" and, if the model
                predicts them, "pred_masks" (N, h, w).

        Raises:
            ValueError: they have something else, which cannot be merged.
        """
        unknown = sorted(set(instances.get_fields()) - _FIELDS)
        if unknown or type(instances.pred_boxes) is not Boxes:
            kind = ", ".join(unknown) or type(instances.pred_boxes).__name__
            raise ValueError(f"tiles merge boxes and masks of objects, but not {kind}")
        x, y = self._tiles[number].region[:2]
        kept = instances.pred_boxes.nonempty().cpu()
        boxes = instances.pred_boxes.tensor.cpu()[kept] + torch.tensor([x, y, x, y])
        scores, classes = instances.scores.cpu()[kept], instances.pred_classes.cpu()[kept]
        self._added.append((boxes, scores, classes, torch.full((len(boxes),), number)))
        if instances.has("pred_masks"):
            masks = instances.pred_masks.numpy(force=True)
            crops = [MaskCrop.of(masks[index], x, y) for index in kept.nonzero()[:, 0].tolist()]
            self._masks = [*(self._masks or []), *crops]

    def merged(self) -> Instances:
        """The objects of the image, best first, on the CPU; masks are `EncodedMasks`."""
        self._join_added()
        self._leave_cut_objects_to_others()
        tile_of, found = self._tile_of.tolist(), self._boxes.tolist()
        matches, inside = self._compared()
        groups = group_across_tiles(matches, tile_of)
        parts = parts_of_others(groups, inside, found, tile_of, self._tiles)
        groups = [group for number, group in enumerate(groups) if number not in parts]
        chosen = [self._chosen(group, found) for group in groups]
        boxes, scores, classes = (
            torch.stack([part[indexes].amax(0) for indexes in chosen]) if chosen else part
            for part in (self._boxes, self._scores, self._classes)
        )
        if chosen:
            boxes[:, :2] = torch.stack([self._boxes[indexes, :2].amin(0) for indexes in chosen])
        order = scores.argsort(descending=True, stable=True)
        instances = Instances(self._image_size)
        instances.pred_boxes = Boxes(boxes[order])
        instances.scores = scores[order]
        instances.pred_classes = classes[order]
        if self._masks is not None:
            crops = [[self._masks[index] for index in chosen[i]] for i in order.tolist()]
            rles = [encode_union(each, self._image_size) for each in crops]
            instances.pred_masks = EncodedMasks(rles, self._image_size)
        return instances

    def _join_added(self) -> None:
        joined = (self._boxes, self._scores, self._classes, self._tile_of)
        columns = zip(joined, *self._added, strict=True)
        self._boxes, self._scores, self._classes, self._tile_of = map(torch.cat, columns)
        self._added = []

    def _keep(self, kept: Tensor) -> None:
        self._boxes, self._scores = self._boxes[kept], self._scores[kept]
        self._classes, self._tile_of = self._classes[kept], self._tile_of[kept]
        if self._masks is not None:
            self._masks = [self._masks[index] for index in kept.nonzero()[:, 0].tolist()]

    def _of_tiles(self) -> list[Tensor]:
        """The numbers of the detections of each tile."""
        counts = self._tile_of.bincount(minlength=len(self._tiles))
        return list(self._tile_of.argsort(stable=True).split(counts.tolist()))

    def _seen_whole(self, numbers: Tensor, tile: int) -> Tensor:
        """Whether a tile sees detections (N,) whole, and something around them."""
        x0, y0, x1, y1 = self._tiles[tile].region
        height, width = self._image_size
        margin = max(1.0, _MARGIN * self._settings.size)
        # Nothing is cut at the borders of the image.
        low = torch.tensor([start + margin if start > 0 else -torch.inf for start in (x0, y0)])
        high = torch.tensor(
            [end - margin if end < side else torch.inf for end, side in ((x1, width), (y1, height))]
        )
        boxes = self._boxes[numbers]
        return ((boxes[:, :2] >= low) & (boxes[:, 2:] <= high)).all(1)

    def _leave_cut_objects_to_others(self) -> None:
        """Drops what comes close to its tile's border, if a tile that sees all of it has it too."""
        of_tiles = self._of_tiles()
        cut = [mine[~self._seen_whole(mine, tile)] for tile, mine in enumerate(of_tiles)]
        kept = torch.ones(len(self._boxes), dtype=torch.bool)
        for i, j, _ in overlaps(self._tiles):
            for tile, other in ((i, j), (j, i)):
                mine = cut[tile][self._seen_whole(cut[tile], other)]
                theirs = of_tiles[other]
                boxes = Boxes(self._boxes[mine])
                common = pairwise_intersection(boxes, Boxes(self._boxes[theirs]))
                is_there = common / boxes.area()[:, None] >= self._settings.iou_threshold
                is_there &= self._classes[mine][:, None] == self._classes[theirs]
                kept[mine[is_there.any(1)]] = False
        self._keep(kept)

    def _compared(self) -> tuple[list[Match], list[tuple[int, int]]]:
        """What may be one object, and what lies inside of another: see `parts_of_others`."""
        of_tiles = self._of_tiles()
        matches: list[Match] = []
        inside: list[tuple[int, int]] = []
        for i, j, region in overlaps(self._tiles):
            first, second = of_tiles[i], of_tiles[j]
            common, areas, other_areas = self._common(first, second, region)
            ious = common / (areas[:, None] + other_areas - common).clamp(min=1e-6)
            for a, b in (ious >= self._settings.iou_threshold).nonzero().tolist():
                one, other = int(first[a]), int(second[b])
                score = min(float(self._scores[one]), float(self._scores[other]))
                matches.append(Match(score * float(ious[a, b]), one, other))
            is_inside = (common >= PART * areas[:, None]) & (common > 0)
            inside += [(int(first[a]), int(second[b])) for a, b in is_inside.nonzero().tolist()]
            is_inside = (common >= PART * other_areas) & (common > 0)
            inside += [(int(second[b]), int(first[a])) for a, b in is_inside.nonzero().tolist()]
        return matches, inside

    def _common(
        self, first: Tensor, second: Tensor, region: Region
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of what lies in a region, the areas (n, m) that are common to detections of one class,
        and the areas (n,) and (m,) of each; those of masks if there are any."""
        x0, y0, x1, y1 = region
        low, high = torch.tensor([x0, y0, x0, y0]), torch.tensor([x1, y1, x1, y1])
        one, other = (Boxes(self._boxes[each].clamp(low, high)) for each in (first, second))
        common = pairwise_intersection(one, other)
        common *= self._classes[first][:, None] == self._classes[second]
        areas = [one.area(), other.area()]
        if self._masks is None:
            return common, *areas
        pixels: list[dict[int, np.ndarray]] = [{}, {}]
        for axis, numbers in enumerate((first, second)):
            for n in common.any(1 - axis).nonzero()[:, 0].tolist():
                pixels[axis][n] = self._masks[int(numbers[n])].pixels(region)
                areas[axis][n] = int(pixels[axis][n].sum())
        for a, b in common.nonzero().tolist():
            common[a, b] = int((pixels[0][a] & pixels[1][b]).sum())
        return common, *areas

    def _chosen(self, group: list[int], boxes: Sequence[Box]) -> list[int]:
        """The detections of a group that make up the object."""
        box = joint_box(boxes[index] for index in group)
        seen_whole = [i for i in group if sees(self._tiles[int(self._tile_of[i])], box)]
        best = max(seen_whole, key=lambda i: float(self._scores[i]), default=None)
        return group if best is None else [best]
