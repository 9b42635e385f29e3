#!/usr/bin/env python
"""Cuts ISPRS Potsdam into images of 512 pixels that overlap by half, with label maps.

IMAGES contains top_potsdam_2_10_RGB.tif and so on, LABELS top_potsdam_2_10_label.tif and so on, as
downloaded (with the border, not "noBoundary"). Of the 38 tiles, 24 are used for training and 14 for
validation.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from label_maps import IGNORED, find_files, folder_parser, run_or_exit, write_labels
from PIL import Image

from vitadapter.data.image_files import read_numbers
from vitadapter.modeling.inference import window_starts

CROP, STRIDE = 512, 256
VALIDATION = {
    *("2_13", "2_14", "3_13", "3_14", "4_13", "4_14", "4_15"),
    *("5_13", "5_14", "5_15", "6_13", "6_14", "6_15", "7_13"),
}
Image.MAX_IMAGE_PIXELS = 10**8  # a tile has 6000 x 6000 pixels
# RGB colours of label 0 (the border) and of the classes + 1.
COLORS = (
    (0, 0, 0),
    (255, 255, 255),
    (0, 0, 255),
    (0, 255, 255),
    (0, 255, 0),
    (255, 255, 0),
    (255, 0, 0),
)
# Tile 4_12 was published after a lossy compression, and most cars of tile 6_7 are (252, 255, 0).
TOLERANCE = 80


def to_classes(colors: np.ndarray) -> np.ndarray:
    """Converts Potsdam's label image (H, W, 3) RGB to 6 classes + 1, 0 for the black border.

    Channels that are a little off count as 0 or 255, unlike in the official release, which ignores
    the pixels of any other colour: two published tiles have many.

    Raises:
        ValueError: a colour that stands for no class.
    """
    if colors.ndim != 3 or colors.shape[2] != 3 or colors.dtype != np.uint8:
        raise ValueError(
            f"label images must be RGB of 8 bit (H, W, 3), got {colors.shape} {colors.dtype}"
        )
    bright = colors > 127
    distance = np.where(bright, 255 - colors, colors).max(axis=2)  # (H, W)
    corners = bright @ np.array([4, 2, 1], dtype=np.uint8)  # (H, W), corners of the colour cube
    table = np.full(8, IGNORED, dtype=np.uint8)
    for label, color in enumerate(COLORS):
        table[(np.array(color) > 127) @ np.array([4, 2, 1])] = label
    labels = np.where(distance > TOLERANCE, np.uint8(IGNORED), table[corners])
    unknown = colors[labels == IGNORED]
    if len(unknown):
        raise ValueError(
            f"colours must be one of {COLORS}, got {tuple(unknown[0].tolist())} "
            f"({len(unknown)} pixels)"
        )
    return labels


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
            classes = to_classes(read_numbers(label_path))
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
    parser = folder_parser(
        __doc__,
        images="folder of the downloaded images",
        labels="folder of the downloaded label maps",
        root="folder to write (potsdam)",
    )
    run_or_exit(prepare, parser.parse_args(arguments))


if __name__ == "__main__":
    main()
