"""A predictor of two boxes and uploads, for the tests of the page."""

from pathlib import Path

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from PIL import Image


class TwoBoxes:
    """Finds two objects in any image, and counts how often it is asked."""

    metadata = Metadata(thing_classes=["cat", "dog"])

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []

    def __call__(self, image: np.ndarray) -> dict[str, Instances]:
        self.images.append(image)
        found = Instances(image.shape[:2])
        found.pred_boxes = Boxes(torch.tensor([[2.0, 2.0, 20.0, 20.0], [25.0, 5.0, 35.0, 25.0]]))
        found.scores, found.pred_classes = torch.tensor([0.9, 0.4]), torch.tensor([0, 1])
        return {"instances": found}


def write_photo(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    """Writes a coloured image of (width, height) pixels."""
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path
