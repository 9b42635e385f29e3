#!/usr/bin/env python
"""Writes the 171 classes of COCO-Stuff as *_labelTrainIds.png.

164k: ROOT holds images/{train2017,val2017} and, from stuffthingmaps_trainval2017.zip,
annotations/{train2017,val2017}/*.png; the maps are written beside these.

10k: ROOT holds images/*.jpg, annotations/*.mat and imageLists/{train,test}.txt, as downloaded; the
images are copied to images/{train2014,test2014}, the maps go to annotations/{train2014,test2014}.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from vitadapter.data.label_conversion import coco_stuff_10k_labels, coco_stuff_labels
from vitadapter.data.label_files import convert_files, find_files


def read_mat(path: Path) -> np.ndarray:
    return loadmat(path)["S"]


def prepare_164k(root: Path) -> int:
    sources = find_files(root / "annotations", "*/*.png")
    sources = [s for s in sources if not s.stem.endswith("_labelTrainIds")]
    pairs = [(s, s.with_name(f"{s.stem}_labelTrainIds.png")) for s in sources]
    return convert_files(pairs, coco_stuff_labels)


def prepare_10k(root: Path) -> int:
    count = 0
    for split, folder in (("train", "train2014"), ("test", "test2014")):
        (listed,) = find_files(root / "imageLists", f"{split}.txt")
        names = listed.read_text().split()
        images = root / "images" / folder
        images.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(root / "images" / f"{name}.jpg", images)
        labels = root / "annotations"
        pairs = [
            (labels / f"{name}.mat", labels / folder / f"{name}_labelTrainIds.png")
            for name in names
        ]
        count += convert_files(pairs, coco_stuff_10k_labels, read_mat)
    return count


def prepare(root: Path, version: str) -> int:
    return prepare_10k(root) if version == "10k" else prepare_164k(root)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder of COCO-Stuff")
    parser.add_argument("--version", choices=["164k", "10k"], default="164k")
    args = parser.parse_args(arguments)
    try:
        count = prepare(args.root, args.version)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{count} label maps written")


if __name__ == "__main__":
    main()
