"""Predicts large images tile by tile."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from vitadapter.modeling.image_record import ImageRecord, asked_size

from .tiled_maps import TiledLabels, TiledSegments
from .tiled_objects import TiledObjects
from .tiles import Tile, Tiles

__all__ = ["TiledInference"]

Merger = TiledObjects | TiledLabels | TiledSegments

# What models predict, the name of what becomes of it, and how it is merged.
_MERGERS: dict[str, tuple[str, type[Merger]]] = {
    "instances": ("instances", TiledObjects),
    "sem_seg": ("label_map", TiledLabels),
    "panoptic_seg": ("panoptic_seg", TiledSegments),
}


class TiledInference(nn.Module):
    """Predicts images in overlapping tiles and merges what is found in them.

    Memory does not grow with the image, but for its pixels, one label map or panoptic map with the
    maps of a row of tiles, and the run lengths of masks: see `TiledObjects`, `TiledLabels` and
    `TiledSegments`.

    Args:
        predict: predicts a batch of tiles, such as an `InferenceModel`.
        tiles: how images are cut.
        prepare: maps a tile (h, w, C) to the model's input (C, h', w'), as test images are mapped.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[ImageRecord]], Sequence[Mapping[str, Any]]],
        tiles: Tiles,
        prepare: Callable[[np.ndarray], Tensor],
    ) -> None:
        super().__init__()
        self.predict = predict
        self.tiles = tiles
        self.prepare = prepare
        # Whatever evaluates a model restores the mode that it found.
        self.train(predict.training if isinstance(predict, nn.Module) else False)

    def forward(self, batched_inputs: Sequence[ImageRecord]) -> list[dict[str, object]]:
        """
        Args:
            batched_inputs: whole images (C, H, W), as they are in their files.

        Returns:
            For each image, on the CPU, what the model predicts: "instances", whose masks are
            `EncodedMasks`; "panoptic_seg"; and "label_map", the class (H, W) of each pixel, in
            place of the scores "sem_seg".

        Raises:
            ValueError: an image of the data set has been resized by the mapper, or the model
                predicts something else.
        """
        return [self._predict(record) for record in batched_inputs]

    def _cut(self, pixels: np.ndarray, tile: Tile) -> ImageRecord:
        x0, y0, x1, y1 = tile.region
        part = np.ascontiguousarray(pixels[y0:y1, x0:x1])
        return {"image": self.prepare(part), "height": y1 - y0, "width": x1 - x0}

    def _predict(self, record: ImageRecord) -> dict[str, object]:
        pixels = record["image"].permute(1, 2, 0).numpy(force=True)
        size = (pixels.shape[0], pixels.shape[1])
        if asked_size(record) != size:
            raise ValueError(
                f"tiles are cut from the whole image, but {record.get('file_name', 'an image')} of "
                f"(height, width) {asked_size(record)} was resized to {size}: set "
                "dataloader.test.mapper.augmentations=[]"
            )
        tiles = self.tiles.of(*size)
        mergers: dict[str, Merger] = {}
        for first in range(0, len(tiles), self.tiles.batch_size):
            batch = tiles[first : first + self.tiles.batch_size]
            outputs = self.predict([self._cut(pixels, tile) for tile in batch])
            for number, output in enumerate(outputs, start=first):
                for kind, found in output.items():
                    if kind not in _MERGERS:
                        raise ValueError(
                            f"tiles merge {', '.join(_MERGERS)}, but the model predicts {kind}"
                        )
                    name, merger = _MERGERS[kind]
                    if name not in mergers:
                        mergers[name] = merger(tiles, size, self.tiles)
                    mergers[name].add(number, found)
            del outputs  # otherwise they would be kept while the next tiles are predicted
        return {name: merger.merged() for name, merger in mergers.items()}
