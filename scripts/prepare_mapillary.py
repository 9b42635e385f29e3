#!/usr/bin/env python
"""Writes label maps of Mapillary Vistas 1.2 in the 19 classes of Cityscapes.

ROOT holds {training,validation}/{images,labels}, as downloaded (of version 2.0: v1.2/labels, to be
moved there); the maps go to {training,validation}/train_ids. Both parts, which the official
recipe trains on, are linked to from trainval/{images,train_ids}.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vitadapter.data.label_conversion import mapillary_labels
from vitadapter.data.label_files import convert_files, find_files


def prepare(root: Path) -> int:
    sources = find_files(root, "*/labels/*.png")
    pairs = [(s, s.parents[1] / "train_ids" / s.name) for s in sources]
    count = convert_files(pairs, mapillary_labels)
    for kind in ("images", "train_ids"):
        (root / "trainval" / kind).mkdir(parents=True, exist_ok=True)
        for part in sorted({source.parents[1].name for source in sources}):
            link = root / "trainval" / kind / part
            if not link.is_symlink():
                link.symlink_to(Path("..", "..", part, kind), target_is_directory=True)
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder of Mapillary Vistas")
    args = parser.parse_args(arguments)
    try:
        count = prepare(args.root)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{count} label maps written")


if __name__ == "__main__":
    main()
