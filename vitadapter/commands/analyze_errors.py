"""Writes what each kind of error costs detectors: TIDE's table and bars of finished evaluations."""

import argparse
import sys
from collections.abc import Sequence

from vitadapter.commands.arguments import named
from vitadapter.evaluation.tide import analyze_errors

_EXAMPLE = """
example:
  %(prog)s --json-file val.json --output errors/ \\
      --run ViT output/vit/inference/coco_instances_results.json \\
      --run ViT-Adapter output/adapter/inference/coco_instances_results.json
"""


def parse_args(
    arguments: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json-file", required=True, help="annotations in COCO's format")
    parser.add_argument(
        "--run",
        dest="runs",
        action="append",
        nargs=2,
        required=True,
        metavar=("NAME", "RESULTS"),
        help="a model and its evaluation's coco_instances_results.json; may be repeated",
    )
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument(
        "--max-dets-per-image",
        type=int,
        default=100,
        help="detections counted per category (default: 100)",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Writes and prints the tables, and draws the bars.

    Args:
        arguments: of the command line; None for those of the process.
        prog: name of the command in messages.
    """
    args = parse_args(arguments, prog)
    try:
        text, written = analyze_errors(
            args.json_file,
            named((name, results) for name, results in args.runs),
            args.output,
            max_dets_per_image=args.max_dets_per_image,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(
        text, "AP50 lost to each kind of error, and in brackets the number of errors.", sep="\n\n"
    )
    print("written:", *written)
