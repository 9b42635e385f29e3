#!/usr/bin/env python
"""Writes label maps of Pascal Context's 59 classes, and lists of its images.

ROOT is VOCdevkit/VOC2010, as downloaded; LABELS contains Pascal Context's NAME.mat with 459 labels.
Writes ROOT/SegmentationClassContext/NAME.png and, following VOC 2010's own splits,
ROOT/ImageSets/SegmentationContext/{train,val}.txt.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from label_maps import convert_files, find_files, folder_parser, look_up, run_or_exit
from scipy.io import loadmat

# Those of the 459 labels of Pascal Context that are the 59 classes, in their order.
LABELS_OF_CLASSES = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98),
    *(104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260),
    *(284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416),
    *(420, 424, 427, 440, 445, 454, 458),
)


def to_classes(label_ids: np.ndarray) -> np.ndarray:
    """Converts Pascal Context's 459 labels (H, W) to 59 classes + 1, 0 elsewhere."""
    classes = {label: i + 1 for i, label in enumerate(LABELS_OF_CLASSES)}
    return look_up(label_ids, classes, 0, num_labels=460)


def read_mat(path: Path) -> np.ndarray:
    return loadmat(path)["LabelMap"]


def prepare(root: Path, labels: Path) -> int:
    available = {path.stem: path for path in find_files(labels, "*.mat")}
    lists = root / "ImageSets" / "SegmentationContext"
    lists.mkdir(parents=True, exist_ok=True)
    count = 0
    for split in ("train", "val"):
        (listed,) = find_files(root / "ImageSets" / "Main", f"{split}.txt")
        names = [name for name in listed.read_text().split() if name in available]
        target = root / "SegmentationClassContext"
        pairs = [(available[name], target / f"{name}.png") for name in names]
        count += convert_files(pairs, to_classes, read_mat)
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    parser = folder_parser(
        __doc__, root="VOCdevkit/VOC2010", labels="folder of Pascal Context's .mat files"
    )
    run_or_exit(prepare, parser.parse_args(arguments))


if __name__ == "__main__":
    main()
