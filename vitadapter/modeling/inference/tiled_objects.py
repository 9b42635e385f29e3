"""Detections of overlapping tiles become those of the image."""

from collections.abc import Iterator, Sequence

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.structures.boxes import pairwise_intersection
from torch import Tensor

from vitadapter.encoded_masks import EncodedMasks, MaskCrop, Region, encode_union

from .tiles import Match, Tile, Tiles, group_across_tiles, overlaps

__all__ = ["TiledObjects"]

_FIELDS = {"pred_boxes", "pred_classes", "pred_masks", "scores"}
# An object may be cut if it comes so close to a tile's border, as a fraction of the tile's side.
_MARGIN = 0.01


class TiledObjects:
    """Collects the "instances" of tiles and merges them.

    - An object that its tile's border cuts is left to another tile, if one sees more around it and
      has found it too.
    - Detections of two tiles are one object if they agree in what both tiles see.
    - Of such detections, the best one of those tiles that see the whole object is taken. If no
      tile does, the object has their joint box, their joint mask and their best score.

    Args:
        tiles: of the image.
        image_size: (height, width).
        settings: of the tiles.
    """

    def __init__(self, tiles: Sequence[Tile], image_size: tuple[int, int], settings: Tiles) -> None:
        self._tiles = tiles
        self._image_size = image_size
        self._settings = settings
        self._boxes = torch.zeros(0, 4)
        self._scores = torch.zeros(0)
        self._classes = torch.zeros(0, dtype=torch.int64)
        self._tile_of = torch.zeros(0, dtype=torch.int64)
        self._masks: list[MaskCrop] | None = None

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
        self._boxes = torch.cat([self._boxes, boxes])
        self._scores = torch.cat([self._scores, instances.scores.cpu()[kept]])
        self._classes = torch.cat([self._classes, instances.pred_classes.cpu()[kept]])
        self._tile_of = torch.cat([self._tile_of, torch.full((len(boxes),), number)])
        if instances.has("pred_masks"):
            masks = instances.pred_masks.numpy(force=True)
            crops = [MaskCrop.of(masks[index], x, y) for index in kept.nonzero()[:, 0].tolist()]
            self._masks = [*(self._masks or []), *crops]

    def merged(self) -> Instances:
        """The objects of the image, best first, on the CPU; masks are `EncodedMasks`."""
        self._leave_cut_objects_to_others()
        groups = group_across_tiles(self._matches(), self._tile_of.tolist())
        chosen = [self._chosen(group) for group in groups]
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

    def _keep(self, kept: Tensor) -> None:
        self._boxes, self._scores = self._boxes[kept], self._scores[kept]
        self._classes, self._tile_of = self._classes[kept], self._tile_of[kept]
        if self._masks is not None:
            self._masks = [self._masks[index] for index in kept.nonzero()[:, 0].tolist()]

    def _leave_cut_objects_to_others(self) -> None:
        """Drops what comes close to its tile's border, if a tile that sees all of it has it too."""
        regions = torch.tensor([tile.region for tile in self._tiles], dtype=torch.float32)
        margin = max(1.0, _MARGIN * self._settings.size)
        height, width = self._image_size
        # Nothing is cut at the borders of the image.
        low = torch.where(regions[:, :2] > 0, regions[:, :2] + margin, -torch.inf)
        ends = torch.tensor([width, height])
        high = torch.where(regions[:, 2:] < ends, regions[:, 2:] - margin, torch.inf)
        inside = (self._boxes[:, None, :2] >= low).all(-1)
        inside &= (self._boxes[:, None, 2:] <= high).all(-1)
        is_whole = inside.gather(1, self._tile_of[:, None])[:, 0]
        cut = (~is_whole & inside.any(1)).nonzero()[:, 0]
        common = pairwise_intersection(Boxes(self._boxes[cut]), Boxes(self._boxes))
        covered = common / Boxes(self._boxes[cut]).area()[:, None]
        is_there = covered >= self._settings.iou_threshold
        is_there &= self._classes[cut][:, None] == self._classes
        is_there &= inside[cut][:, self._tile_of]
        kept = torch.ones(len(self._boxes), dtype=torch.bool)
        kept[cut] = ~is_there.any(1)
        self._keep(kept)

    def _matches(self) -> Iterator[Match]:
        numbers = [(self._tile_of == i).nonzero()[:, 0] for i in range(len(self._tiles))]
        for i, j, region in overlaps(self._tiles):
            first, second = numbers[i], numbers[j]
            ious = self._ious(first, second, region)
            pairs = (ious >= self._settings.iou_threshold).nonzero()
            for (a, b), iou in zip(pairs.tolist(), ious[tuple(pairs.T)].tolist(), strict=True):
                one, other = int(first[a]), int(second[b])
                score = min(float(self._scores[one]), float(self._scores[other]))
                yield Match(score * iou, one, other)

    def _ious(self, first: Tensor, second: Tensor, region: Region) -> Tensor:
        """IoU (n, m) of what lies in a region, of masks if there are any; 0 for other classes."""
        x0, y0, x1, y1 = region
        low, high = torch.tensor([x0, y0, x0, y0]), torch.tensor([x1, y1, x1, y1])
        clipped = [Boxes(self._boxes[each].clamp(low, high)) for each in (first, second)]
        same = self._classes[first][:, None] == self._classes[second]
        ious = torch.where(same, pairwise_iou(*clipped), 0.0)
        if self._masks is None:
            return ious
        for a in ious.any(1).nonzero()[:, 0].tolist():
            mask = self._masks[first[a]].pixels(region)
            for b in ious[a].nonzero()[:, 0].tolist():
                other = self._masks[second[b]].pixels(region)
                ious[a, b] = (mask & other).sum() / max((mask | other).sum(), 1)
        return ious

    def _chosen(self, group: list[int]) -> list[int]:
        """The detections of a group that make up the object."""
        x0, y0 = self._boxes[group, :2].amin(0).tolist()
        x1, y1 = self._boxes[group, 2:].amax(0).tolist()
        regions = {i: self._tiles[int(self._tile_of[i])].region for i in group}
        seen_whole = [
            i
            for i, region in regions.items()
            if region[0] <= x0 and region[1] <= y0 and x1 <= region[2] and y1 <= region[3]
        ]
        best = max(seen_whole, key=lambda i: float(self._scores[i]), default=None)
        return group if best is None else [best]
