"""Command lines: `convert` writes what training would read of a folder, `check` looks at it."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vitadapter.data.folders.check import check_dataset
from vitadapter.data.folders.listing import Listing
from vitadapter.data.folders.prepare import (
    KINDS,
    LabelSettings,
    kind_of,
    located,
    made_whole,
    prepare,
    write_prepared,
)
from vitadapter.data.folders.splits import FolderSettings

__all__ = ["check_main", "convert_main"]


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    default = FolderSettings()
    parser.add_argument("root", help="folder of the data set, as dataset.root")
    parser.add_argument("--kind", choices=KINDS, help="what to train (by default as it looks)")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="files to leave out"
    )
    parser.add_argument(
        "--unlabelled", choices=("empty", "skip"), help="what images without a label file are"
    )
    parser.add_argument("--fraction", type=float, default=default.fraction, help="held out")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the split")
    parser.add_argument("--group", help="regular expression: files that stay in one split")
    parser.add_argument(
        "--ignore-label", type=int, default=LabelSettings().ignore_label, help="of label maps"
    )
    parser.add_argument(
        "--reduce-zero-label", action="store_true", help="label maps hold 0 for no class"
    )
    return parser


def _settings(args: argparse.Namespace) -> tuple[FolderSettings, LabelSettings]:
    settings = FolderSettings(
        tuple(args.exclude), args.unlabelled, args.fraction, args.seed, args.group
    )
    return settings, LabelSettings(args.ignore_label, args.reduce_zero_label)


def _run(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    try:
        return command(args)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _convert(args: argparse.Namespace) -> int:
    settings, labels = _settings(args)
    listing = Listing(args.root, settings.exclude)
    out = Path(args.out).expanduser().resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {args.out} must be a new or an empty folder")
    if out.is_relative_to(listing.root.resolve()):
        raise ValueError(f"--out {args.out} must not lie in the folder that is read")
    kind = args.kind or kind_of(listing)
    with made_whole(out) as making:
        values = write_prepared(listing, kind, settings, labels, making, reuse=False)
    for key, value in located(values, out).items():
        sys.stdout.write(shlex.quote(f"{key}={'null' if value is None else value}") + "\n")
    return 0


def convert_main(arguments: Sequence[str] | None = None) -> int:
    """Writes a folder as COCO json, `train.json` and `test.json`, and says how to train on it.

    Label maps become numbers of classes, with links to the images.

    Returns:
        int: the exit status.
    """
    parser = _parser("Writes a data set of any format that dataset.root reads as COCO json.")
    parser.add_argument("--out", required=True, help="new folder to write")
    return _run(_convert, parser.parse_args(arguments))


def _check(args: argparse.Namespace) -> int:
    settings, labels = _settings(args)
    kind = args.kind or kind_of(Listing(args.root, settings.exclude))
    report = check_dataset(prepare(args.root, kind, settings, labels), labels, args.images)
    sys.stdout.write(report.text() + "\n")
    return 1 if report.refusals else 0


def check_main(arguments: Sequence[str] | None = None) -> int:
    """Prints what is in a folder, and what would make training wrong.

    Returns:
        int: the exit status, 1 if training is refused.
    """
    parser = _parser("Looks at all images and annotations of a data set.")
    parser.add_argument("--images", type=int, help="how many of a split to read, instead of all")
    return _run(_check, parser.parse_args(arguments))
