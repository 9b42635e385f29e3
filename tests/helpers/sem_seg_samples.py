"""Folders of images and label maps, as segmentation data sets have them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def write_labels(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


def write_pairs(
    folder: Path, maps: Mapping[str, np.ndarray], image_suffix: str = ".jpg"
) -> tuple[Path, Path]:
    """Images and label maps of the same names; each image shows its labels as grey values.

    Returns:
        The folder of the images and the folder of the label maps.
    """
    images, labels = folder / "images", folder / "labels"
    for name, values in maps.items():
        grey = np.repeat((values.astype(np.int64) * 20 % 256)[..., None], 3, axis=2)
        path = images / f"{name}{image_suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey.astype(np.uint8)).save(path)
        write_labels(labels / f"{name}.png", values)
    return images, labels


def some_labels(seed: int = 0, size: tuple[int, int] = (24, 32), classes: int = 3) -> np.ndarray:
    """Blocks of 4 x 4 pixels with random classes (H, W) uint8, and ignored ones in a corner."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, classes, (-(-size[0] // 4), -(-size[1] // 4)), dtype=np.uint8)
    labels = blocks.repeat(4, axis=0).repeat(4, axis=1)[: size[0], : size[1]].copy()
    labels[:3, :5] = 255
    return labels
