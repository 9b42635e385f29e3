"""Predictions of exported files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import transforms as T
from torch import nn

from vitadapter.data.transforms import augment
from vitadapter.engine.predictor import Prediction, check_image
from vitadapter.modeling.image_record import ImageRecord
from vitadapter.modeling.inference import TiledInference, Tiles

from .model import ExportedModel

__all__ = ["ExportedPredictor"]


class ExportedPredictor:
    """Runs an exported file on images, and answers as `LazyPredictor` does.

    Example::

        predictor = ExportedPredictor("detector.onnx")
        instances = predictor(read_image("image.jpg", "BGR"))["instances"]

    Args:
        file: what `export` has written.
        tiles: how large images are cut, as in `LazyPredictor`; None predicts whole images.

    Attributes:
        model: what runs the file.
        description: what the file says of itself.
        metadata: of the classes: their names and ids, if they are known.
        array_format: "BGR", the order of the channels of images.

    Raises:
        ValueError, FileNotFoundError: see `ExportedModel`.
    """

    def __init__(self, file: str | Path, *, tiles: Tiles | None = None) -> None:
        self.model = ExportedModel(file)
        self.description = self.model.description
        self.metadata = self.description.metadata()
        self.array_format = "BGR"
        augmentations = self.description.augmentations()
        self._augmentations = augmentations
        self._inference: nn.Module = self.model
        if tiles is not None:
            self._augmentations = T.AugmentationList([])
            self._inference = TiledInference(
                self.model, tiles, lambda tile: augment(augmentations, tile).image
            )

    def __call__(self, image: np.ndarray) -> Prediction:
        """See `LazyPredictor.__call__`."""
        return self.predict([image])[0]

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Predicts several images, one after the other; see `LazyPredictor.predict`."""
        for image in images:
            check_image(image)
        return self._inference([self.preprocess(image) for image in images])

    def preprocess(self, image: np.ndarray) -> ImageRecord:
        """See `LazyPredictor.preprocess`."""
        height, width = image.shape[:2]
        if self.description.image_format == "RGB":
            image = image[:, :, ::-1]
        pixels = augment(self._augmentations, np.ascontiguousarray(image)).image
        return {"image": pixels, "height": height, "width": width}
