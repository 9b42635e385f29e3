#!/usr/bin/env python
"""Writes label maps of Mapillary Vistas 1.2 in the 19 classes of Cityscapes.

ROOT contains {training,validation}/{images,labels}, as downloaded (in version 2.0, the labels are
in v1.2/labels and have to be moved there). The label maps are written to
{training,validation}/train_ids. Links to both parts, which the official recipe trains on, are made
in trainval/{images,train_ids}.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from label_maps import IGNORED, convert_files, find_files, folder_parser, look_up, run_or_exit

# For each of Cityscapes' 19 classes, the labels of Mapillary Vistas 1.2 that belong to it.
LABELS_OF_CLASSES = (
    *((13, 24, 41), (2, 15), (17,), (6,), (3,), (45, 47), (48,), (50,), (30,), (29,), (27,)),
    *((19,), (20, 21, 22), (55,), (61,), (54,), (58,), (57,), (52,)),
)


def to_classes(label_ids: np.ndarray) -> np.ndarray:
    """Converts Mapillary Vistas' labels (H, W) to Cityscapes' 19 classes, 255 elsewhere."""
    classes = {label: i for i, labels in enumerate(LABELS_OF_CLASSES) for label in labels}
    return look_up(label_ids, classes, IGNORED)


def prepare(root: Path) -> int:
    sources = find_files(root, "*/labels/*.png")
    pairs = [(s, s.parents[1] / "train_ids" / s.name) for s in sources]
    count = convert_files(pairs, to_classes)
    for kind in ("images", "train_ids"):
        (root / "trainval" / kind).mkdir(parents=True, exist_ok=True)
        for part in sorted({source.parents[1].name for source in sources}):
            link = root / "trainval" / kind / part
            if not link.is_symlink():
                link.symlink_to(Path("..", "..", part, kind), target_is_directory=True)
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    parser = folder_parser(__doc__, root="folder of Mapillary Vistas")
    run_or_exit(prepare, parser.parse_args(arguments))


if __name__ == "__main__":
    main()
