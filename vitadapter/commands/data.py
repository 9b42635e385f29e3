"""`vitadapter data`: data sets. `vitadapter data sample` makes the sample data set."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from vitadapter.sample_data.dataset import MAX_SIZE, MIN_SIZE, make_sample_dataset

__all__ = ["main", "sample"]

_SAMPLE = """\
Makes the sample data set: real handwritten digits on real photographs, in COCO's format.

Needs scikit-learn and scikit-image (`pip install vitadapter[sample]`), but no network. Running it
again with the same arguments does nothing.
"""


def _add_sample_arguments(parser: argparse.ArgumentParser) -> None:
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


def _sample(args: argparse.Namespace) -> None:
    # `delay` keeps the bar away when there is nothing to write.
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


def sample(arguments: Sequence[str] | None = None) -> None:
    """Makes the sample data set, as `scripts/make_sample_dataset.py`.

    Args:
        arguments: of the command line; None for those of the process.
    """
    parser = argparse.ArgumentParser(
        description=_SAMPLE, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    _add_sample_arguments(parser)
    _sample(parser.parse_args(arguments))


def main(arguments: Sequence[str], prog: str = "vitadapter data") -> None:
    """Runs what is asked for of a data set.

    Args:
        arguments: of the command line.
        prog: name of the command in messages.
    """
    parser = argparse.ArgumentParser(prog=prog, description="Makes data sets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    made = commands.add_parser(
        "sample",
        help="make the sample data set",
        description=_SAMPLE,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_sample_arguments(made)
    made.set_defaults(run=_sample)
    args = parser.parse_args(arguments)
    args.run(args)
