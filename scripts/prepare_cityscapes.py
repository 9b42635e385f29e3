#!/usr/bin/env python
"""Writes label maps of Cityscapes' 19 classes next to its own, as *_gtFine_labelTrainIds.png.

ROOT contains gtFine/{train,val}/CITY/*_gtFine_labelIds.png, as downloaded.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from label_maps import IGNORED, convert_files, find_files, folder_parser, look_up, run_or_exit

from vitadapter.data.sem_seg.layouts import CITYSCAPES_TRAIN_IDS


def to_classes(label_ids: np.ndarray) -> np.ndarray:
    """Converts `*_labelIds.png` (H, W) to the 19 classes that are evaluated, 255 elsewhere."""
    return look_up(label_ids, CITYSCAPES_TRAIN_IDS, IGNORED)


def prepare(root: Path) -> int:
    sources = find_files(root / "gtFine", "*/*/*_gtFine_labelIds.png")
    pairs = [(s, s.with_name(s.name.replace("_labelIds", "_labelTrainIds"))) for s in sources]
    return convert_files(pairs, to_classes)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = folder_parser(__doc__, root="folder of Cityscapes")
    run_or_exit(prepare, parser.parse_args(arguments))


if __name__ == "__main__":
    main()
