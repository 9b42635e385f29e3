"""Images with objects, for steps whose cost is of interest and not their result."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, PolygonMasks

from vitadapter.modeling.image_record import ImageRecord

__all__ = ["MOST_PIXELS", "check_pixels", "synthetic_images"]

MOST_PIXELS = 2**28
"""Of all images of a step: beyond it, the images alone would fill gigabytes."""

_SMALLEST = 16  # pixels, unless the image is too small for it


def check_pixels(size: tuple[int, int], batch: int = 1) -> None:
    """Refuses images without pixels, and those that are too many or too large.

    Raises:
        ValueError: gives the rule and the numbers.
    """
    height, width = size
    if min(size) < 1:
        raise ValueError(f"an image has a height and a width of at least 1, got {size}")
    if batch * height * width > MOST_PIXELS:
        raise ValueError(
            f"at most {MOST_PIXELS} pixels can be analysed at once, got {batch} x {height} x "
            f"{width} = {batch * height * width}"
        )


def _boxes(count: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Boxes (count, 4) of all scales: from 16 pixels to half the image, equally many per octave."""
    limit = np.array(size[::-1], dtype=float)
    log_smallest = np.log(np.minimum(_SMALLEST, limit / 2))
    sides = np.exp(rng.uniform(log_smallest, np.log(limit / 2), (count, 2)))
    corners = rng.uniform(size=(count, 2)) * (limit - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def _polygons(boxes: np.ndarray) -> list[list[np.ndarray]]:
    return [[np.array([x0, y0, x1, y0, x1, y1, x0, y1])] for x0, y0, x1, y1 in boxes]


def synthetic_images(
    batch: int, size: tuple[int, int], *, objects: int, num_classes: int
) -> list[ImageRecord]:
    """Makes training images of noise with rectangular objects, each with a mask.

    Args:
        batch: number of images.
        size: (height, width) of each.
        objects: number of objects in each; the classes take turns.
        num_classes: number of their classes.

    Returns:
        Records with "instances" and "sem_seg", in which the last object is on top, and class 0
        elsewhere. The same arguments give the same images.
    """
    rng = np.random.default_rng(0)
    return [_image(size, _boxes(objects, size, rng), num_classes, rng) for _ in range(batch)]


def _image(
    size: tuple[int, int], boxes: np.ndarray, num_classes: int, rng: np.random.Generator
) -> ImageRecord:
    classes = torch.arange(len(boxes)) % num_classes
    labels = torch.zeros(size, dtype=torch.long)
    corners: Sequence[Sequence[int]] = boxes.round().astype(int).tolist()
    for (x0, y0, x1, y1), label in zip(corners, classes.tolist(), strict=True):
        labels[y0:y1, x0:x1] = label
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.from_numpy(boxes).float())
    instances.gt_classes = classes
    instances.gt_masks = PolygonMasks(_polygons(boxes))
    noise = rng.integers(0, 256, (3, *size), dtype=np.uint8)
    return {
        "image": torch.from_numpy(noise),
        "height": size[0],
        "width": size[1],
        "instances": instances,
        "sem_seg": labels,
    }
