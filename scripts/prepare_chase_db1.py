#!/usr/bin/env python
"""Splits CHASE-DB1 into training and validation, with label maps of 0 and 1.

SOURCE contains Image_01L.jpg, Image_01L_1stHO.png, Image_01L_2ndHO.png and so on, as downloaded.
The first 20 images are used for training, the other 8 for validation.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from label_maps import convert_files, find_files, folder_parser, run_or_exit

from vitadapter.data.image_files import open_image, read_numbers

NUM_IMAGES, NUM_TRAINING = 28, 20


def to_classes(grey: np.ndarray) -> np.ndarray:
    """Converts `*_1stHO.png` (H, W) with 0 and 255, or 0 and 1, to 0 and 1."""
    if grey.ndim != 2:
        raise ValueError(f"label maps must be grey (H, W), got {grey.shape}")
    return (grey > (0 if grey.max(initial=0) <= 1 else 127)).astype(np.uint8)


def read_grey(path: Path) -> np.ndarray:
    labels = read_numbers(path)
    return labels.astype("uint8") if labels.dtype == bool else labels


def prepare(source: Path, root: Path) -> int:
    count = 0
    images = find_files(source, "*.jpg")
    if len(images) != NUM_IMAGES:  # the split depends on their order
        raise ValueError(f"{source} must hold CHASE-DB1's {NUM_IMAGES} images, got {len(images)}")
    for split, members in (
        ("training", images[:NUM_TRAINING]),
        ("validation", images[NUM_TRAINING:]),
    ):
        (root / "images" / split).mkdir(parents=True, exist_ok=True)
        pairs = []
        for image in members:
            with open_image(image) as opened:
                opened.save(root / "images" / split / f"{image.stem}.png")
            # The first of two human observers is the ground truth.
            name = f"{image.stem}_1stHO.png"
            pairs.append((source / name, root / "annotations" / split / name))
        count += convert_files(pairs, to_classes, read_grey)
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    parser = folder_parser(
        __doc__, source="folder of the downloaded files", root="folder to write (CHASE_DB1)"
    )
    run_or_exit(prepare, parser.parse_args(arguments))


if __name__ == "__main__":
    main()
