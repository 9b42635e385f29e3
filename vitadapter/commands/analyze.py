"""Writes tables of AP by class and size, and precision-recall curves, for a finished evaluation."""

import argparse
import sys
from collections.abc import Sequence

from vitadapter.commands.arguments import DefaultsHelpFormatter
from vitadapter.evaluation.detection_analysis import analyze_results


def parse_args(
    arguments: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=DefaultsHelpFormatter
    )
    parser.add_argument("--json-file", required=True, help="annotations in COCO's format")
    parser.add_argument(
        "--results", required=True, help="an evaluation's coco_instances_results.json"
    )
    parser.add_argument("--output", help="folder to write to; default: the folder of the results")
    parser.add_argument(
        "--max-dets-per-image", type=int, default=100, help="detections counted per category"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    args = parse_args(arguments, prog)
    try:
        tasks, written = analyze_results(
            args.json_file,
            args.results,
            args.output,
            max_dets_per_image=args.max_dets_per_image,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    for figures in tasks:
        print(figures.table(), end="\n\n")
    print("written:", *written)
