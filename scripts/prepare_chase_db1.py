#!/usr/bin/env python
"""Sorts CHASE-DB1 into training and validation, with label maps of 0 and 1.

SOURCE holds Image_01L.jpg, Image_01L_1stHO.png, Image_01L_2ndHO.png and so on, as downloaded; the
first 20 images are for training, the other 8 for validation.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitadapter.data.image_files import open_image, read_numbers
from vitadapter.data.label_conversion import chase_db1_labels
from vitadapter.data.label_files import convert_files, find_files

NUM_IMAGES, NUM_TRAINING = 28, 20


def read_grey(path: Path) -> np.ndarray:
    labels = read_numbers(path)
    return labels.astype("uint8") if labels.dtype == bool else labels


def prepare(source: Path, root: Path) -> int:
    count = 0
    images = find_files(source, "*.jpg")
    if len(images) != NUM_IMAGES:  # the split goes by their order
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
            # Of two human observers the first is the truth.
            name = f"{image.stem}_1stHO.png"
            pairs.append((source / name, root / "annotations" / split / name))
        count += convert_files(pairs, chase_db1_labels, read_grey)
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder of the download")
    parser.add_argument("root", type=Path, help="folder to write, CHASE_DB1")
    args = parser.parse_args(arguments)
    try:
        count = prepare(args.source, args.root)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{count} label maps written")


if __name__ == "__main__":
    main()
