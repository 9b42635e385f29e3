#!/usr/bin/env python
"""Writes the 59 classes of Pascal Context, and its lists of images.

ROOT is VOCdevkit/VOC2010, as downloaded; LABELS holds Pascal Context's NAME.mat with 459 labels.
Writes ROOT/SegmentationClassContext/NAME.png and, after VOC 2010's own splits,
ROOT/ImageSets/SegmentationContext/{train,val}.txt.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from vitadapter.data.label_conversion import pascal_context_labels
from vitadapter.data.label_files import convert_files, find_files


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
        count += convert_files(pairs, pascal_context_labels, read_mat)
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="VOCdevkit/VOC2010")
    parser.add_argument("labels", type=Path, help="folder of Pascal Context's .mat files")
    args = parser.parse_args(arguments)
    try:
        count = prepare(args.root, args.labels)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{count} label maps written")


if __name__ == "__main__":
    main()
