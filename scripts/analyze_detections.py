#!/usr/bin/env python
"""Tables of AP by class and size, and precision-recall curves, from what an evaluation leaves."""

import argparse
import sys
from collections.abc import Sequence

from vitadapter.evaluation.detection_analysis import analyze_results


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--json-file", required=True, help="annotations in COCO's format")
    parser.add_argument(
        "--results", required=True, help="coco_instances_results.json of an evaluation"
    )
    parser.add_argument("--output", help="folder for the files; next to the results without it")
    parser.add_argument(
        "--max-dets-per-image", type=int, default=100, help="that are counted of each category"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
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


if __name__ == "__main__":
    main()
