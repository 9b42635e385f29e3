#!/usr/bin/env python
"""Writes the 19 classes of Cityscapes beside its label ids, as *_gtFine_labelTrainIds.png.

ROOT holds gtFine/{train,val}/CITY/*_gtFine_labelIds.png, as downloaded.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vitadapter.data.label_conversion import cityscapes_labels
from vitadapter.data.label_files import convert_files, find_files


def prepare(root: Path) -> int:
    sources = find_files(root / "gtFine", "*/*/*_gtFine_labelIds.png")
    pairs = [(s, s.with_name(s.name.replace("_labelIds", "_labelTrainIds"))) for s in sources]
    return convert_files(pairs, cityscapes_labels)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder of Cityscapes")
    args = parser.parse_args(arguments)
    try:
        count = prepare(args.root)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{count} label maps written")


if __name__ == "__main__":
    main()
