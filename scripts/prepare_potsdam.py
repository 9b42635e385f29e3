#!/usr/bin/env python
"""Cuts ISPRS Potsdam into images of 512 pixels that overlap by half, with label maps.

IMAGES holds top_potsdam_2_10_RGB.tif and so on, LABELS top_potsdam_2_10_label.tif and so on, as
downloaded (with the border, not "noBoundary"). Of the 38 tiles 24 are for training, 14 for
validation.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vitadapter.data.image_files import read_numbers
from vitadapter.data.label_conversion import potsdam_labels
from vitadapter.data.label_files import find_files, write_labels
from vitadapter.modeling.inference import window_starts

CROP, STRIDE = 512, 256
VALIDATION = {
    *("2_13", "2_14", "3_13", "3_14", "4_13", "4_14", "4_15"),
    *("5_13", "5_14", "5_15", "6_13", "6_14", "6_15", "7_13"),
}
Image.MAX_IMAGE_PIXELS = 10**8  # a tile has 6000 x 6000


def windows(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    for top in window_starts(shape[0], CROP, STRIDE):
        for left in window_starts(shape[1], CROP, STRIDE):
            yield slice(top, top + CROP), slice(left, left + CROP)


def prepare(images: Path, labels: Path, root: Path) -> int:
    count = 0
    for path in find_files(images, "*_RGB.tif"):
        tile = "_".join(path.stem.split("_")[2:4])
        split = "val" if tile in VALIDATION else "train"
        image = read_numbers(path)
        label_path = labels / path.name.replace("_RGB", "_label")
        try:
            classes = potsdam_labels(read_numbers(label_path))
        except ValueError as error:
            raise ValueError(f"{label_path} cannot be converted: {error}") from error
        if classes.shape != image.shape[:2]:
            raise ValueError(f"{label_path} is {classes.shape}, its image {image.shape[:2]}")
        for rows, columns in windows(classes.shape):
            name = f"{tile}_{columns.start}_{rows.start}.png"
            write_labels(
                root / "img_dir" / split / name, np.ascontiguousarray(image[rows, columns])
            )
            write_labels(root / "ann_dir" / split / name, classes[rows, columns])
            count += 1
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="folder of the images")
    parser.add_argument("labels", type=Path, help="folder of the label images")
    parser.add_argument("root", type=Path, help="folder to write, potsdam")
    args = parser.parse_args(arguments)
    try:
        count = prepare(args.images, args.labels, args.root)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{count} label maps written")


if __name__ == "__main__":
    main()
