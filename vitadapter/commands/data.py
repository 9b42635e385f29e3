"""`vitadapter data`: checks, converts and shows data sets, and makes the sample data set."""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from vitadapter.commands.arguments import DefaultsHelpFormatter
from vitadapter.commands.data_show import show
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
from vitadapter.sample_data.dataset import MAX_SIZE, MIN_SIZE, make_sample_dataset

__all__ = ["check", "convert", "main", "sample"]

_SAMPLE = """\
Makes the sample data set: real handwritten digits on real photographs, in COCO's format.

Needs scikit-learn and scikit-image (`pip install vitadapter[sample]`), but no network. Running it
again with the same arguments does nothing.
"""


def sample(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Makes the sample data set, as `scripts/make_sample_dataset.py` does.

    Args:
        arguments: of the command line; None for those of the process.
        prog: name of the command in messages.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=_SAMPLE, formatter_class=DefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the data set")
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
    # `delay` keeps the bar away when there is nothing to write.
    with tqdm(
        total=args.train + args.val, desc="sample data set", unit="image", mininterval=1, delay=0.1
    ) as bar:
        try:
            written = make_sample_dataset(
                args.output,
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
    print(f"sample data set ({args.train} train, {args.val} val images) {state} {args.output}")


# What training calls dataset.*, as its messages do.
_OPTIONS = {
    "dataset.exclude": "--exclude PATTERN",
    "dataset.unlabelled": "--unlabelled",
    "dataset.split.fraction": "--fraction",
    "dataset.split.seed": "--seed",
    "dataset.split.group": "--group",
    "dataset.ignore_label": "--ignore-label",
    "dataset.reduce_zero_label": "--reduce-zero-label",
}


def _folder_parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=DefaultsHelpFormatter,
    )
    default = FolderSettings()
    parser.add_argument("root", help="folder of the data set, as dataset.root")
    parser.add_argument("--kind", choices=KINDS, help="what to train (by default as it looks)")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="files to leave out, as dataset.exclude; may be repeated",
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


def _print_options(text: str) -> None:
    """Says how this command spells the overrides of training that a message names."""
    named = {f"{key} is {option} here" for key, option in _OPTIONS.items() if key in text}
    if named:
        print("; ".join(sorted(named)), file=sys.stderr)


def _run(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    try:
        return command(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        _print_options(str(error))
        return 1


def _convert(args: argparse.Namespace) -> int:
    settings, labels = _settings(args)
    listing = Listing(args.root, settings.exclude)
    out = Path(args.output).expanduser().resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--output {args.output} must be a new or an empty folder")
    if out.is_relative_to(listing.root.resolve()):
        raise ValueError(f"--output {args.output} must not lie in the folder that is read")
    kind = args.kind or kind_of(listing)
    with made_whole(out) as making:
        written = write_prepared(listing, kind, settings, labels, making, reuse=False)
    for key, value in located(written.values, out).items():
        print(shlex.quote(f"{key}={'null' if value is None else value}"))
    return 0


def convert(arguments: Sequence[str], prog: str = "vitadapter data convert") -> int:
    """Writes a folder as COCO json, `train.json` and `test.json`, and says how to train on it.

    Label maps become numbers of classes, with links to the images.

    Returns:
        The exit status.
    """
    parser = _folder_parser(
        prog, "Writes a data set of any format that dataset.root reads as COCO json."
    )
    parser.add_argument("--output", required=True, help="new folder to write")
    return _run(_convert, parser.parse_args(arguments))


def _check(args: argparse.Namespace) -> int:
    settings, labels = _settings(args)
    report = check_dataset(prepare(args.root, args.kind, settings, labels), labels, args.images)
    print(report.text())
    _print_options(" ".join(report.refusals))
    return 1 if report.refusals else 0


def check(arguments: Sequence[str], prog: str = "vitadapter data check") -> int:
    """Prints what is in a folder, and what would make training wrong.

    Returns:
        The exit status, 1 if training is refused.
    """
    parser = _folder_parser(prog, "Looks at all images and annotations of a data set.")
    parser.add_argument("--images", type=int, help="how many of a split to read, instead of all")
    args = parser.parse_args(arguments)
    if args.images is not None and args.images < 1:
        parser.error(f"--images must be at least 1, got {args.images}")
    return _run(_check, args)


_COMMANDS: Mapping[str, tuple[str, Callable[..., int | None]]] = {
    "check": ("look at a folder before training on it", check),
    "convert": ("write a folder of any known format as COCO json", convert),
    "sample": ("make the sample data set", sample),
    "show": ("draw images with their annotations, as a model gets them", show),
}


def main(arguments: Sequence[str], prog: str = "vitadapter data") -> int | None:
    """Runs what is asked for of a data set.

    Args:
        arguments: of the command line.
        prog: name of the command in messages.

    Returns:
        int | None: the exit status.
    """
    listed = "\n".join(f"  {name:9}{does}" for name, (does, _) in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Data sets: looks at them, converts them, makes one.",
        epilog=f"commands:\n{listed}\n\n`{prog} COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=list(_COMMANDS), metavar="COMMAND")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...")
    args = parser.parse_args(arguments)
    return _COMMANDS[args.command][1](args.rest, prog=f"{prog} {args.command}")
