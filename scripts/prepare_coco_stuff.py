#!/usr/bin/env python
"""Writes label maps of COCO-Stuff's 171 classes as *_labelTrainIds.png.

164k: ROOT contains images/{train2017,val2017} and, from stuffthingmaps_trainval2017.zip,
annotations/{train2017,val2017}/*.png. The label maps are written beside these.

10k: ROOT contains images/*.jpg, annotations/*.mat and imageLists/{train,test}.txt, as downloaded.
The images are copied to images/{train2014,test2014}, and the label maps are written to
annotations/{train2014,test2014}.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from label_maps import IGNORED, convert_files, find_files, folder_parser, look_up, run_or_exit
from scipy.io import loadmat

from vitadapter.data.sem_seg.layouts import COCO_STUFF_IDS


def to_classes_164k(category_ids: np.ndarray) -> np.ndarray:
    """Converts COCO-Stuff 164k's category ids - 1 (H, W) to 171 classes, 255 elsewhere."""
    classes = {category - 1: label for label, category in enumerate(COCO_STUFF_IDS)}
    return look_up(category_ids, classes, IGNORED)


def to_classes_10k(category_ids: np.ndarray) -> np.ndarray:
    """Converts COCO-Stuff 10k's category ids (H, W) to 171 classes + 1, 0 elsewhere."""
    classes = {category: label + 1 for label, category in enumerate(COCO_STUFF_IDS)}
    return look_up(category_ids, classes, 0)


def read_mat(path: Path) -> np.ndarray:
    return loadmat(path)["S"]


def prepare_164k(root: Path) -> int:
    sources = find_files(root / "annotations", "*/*.png")
    sources = [s for s in sources if not s.stem.endswith("_labelTrainIds")]
    pairs = [(s, s.with_name(f"{s.stem}_labelTrainIds.png")) for s in sources]
    return convert_files(pairs, to_classes_164k)


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
        count += convert_files(pairs, to_classes_10k, read_mat)
    return count


def prepare(root: Path, version: str) -> int:
    return prepare_10k(root) if version == "10k" else prepare_164k(root)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = folder_parser(__doc__, root="folder of COCO-Stuff")
    parser.add_argument("--version", choices=["164k", "10k"], default="164k")
    run_or_exit(prepare, parser.parse_args(arguments))


if __name__ == "__main__":
    main()
