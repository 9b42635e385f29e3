#!/usr/bin/env python
"""Makes the sample data set: real handwritten digits on real photographs, in COCO's format.

Needs scikit-learn and scikit-image (`pip install vitadapter[sample]`), but no network. Running it
again with the same arguments does nothing.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sample_data.dataset import MAX_SIZE, MIN_SIZE, make_sample_dataset
from tqdm import tqdm


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and make the data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--train", type=int, default=800, help="number of training images")
    parser.add_argument("--val", type=int, default=160, help="number of held-out images")
    parser.add_argument(
        "--size", type=int, default=128, help=f"image side in pixels, {MIN_SIZE} to {MAX_SIZE}"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of all random choices; 0 or larger"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a different data set in the folder"
    )
    args = parser.parse_args(arguments)
    # With `delay`, there is no bar if there is nothing to write.
    with tqdm(
        total=args.train + args.val, desc="sample data set", unit="image", mininterval=1, delay=0.1
    ) as bar:
        try:
            written = make_sample_dataset(
                args.out,
                args.train,
                args.val,
                args.size,
                args.seed,
                overwrite=args.overwrite,
                on_image=bar.update,
            )
        except (ImportError, OSError, ValueError) as error:
            sys.exit(f"error: {error}")
    state = "written to" if written else "already in"
    print(f"sample data set ({args.train} train, {args.val} val images) {state} {args.out}")


if __name__ == "__main__":
    main()
