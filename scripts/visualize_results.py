#!/usr/bin/env python
"""Draws the predictions of a finished evaluation next to the ground truth."""

import argparse
import sys
from collections.abc import Sequence

from vitadapter.commands.arguments import DefaultsHelpFormatter
from vitadapter.visualization.gallery import draw_gallery


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=DefaultsHelpFormatter)
    parser.add_argument("--json-file", required=True, help="annotations in COCO's format")
    parser.add_argument("--image-root", required=True, help="folder of the images")
    parser.add_argument(
        "--results", required=True, help="an evaluation's coco_instances_results.json"
    )
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument("--num-images", type=int, default=16, help="draw at most this many")
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        help="draw predictions with at least this score, in [0, 1]",
    )
    parser.add_argument("--seed", type=int, default=0, help="selects the images")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    try:
        written = draw_gallery(
            args.json_file,
            args.image_root,
            args.results,
            args.output,
            num_images=args.num_images,
            score_threshold=args.score_threshold,
            seed=args.seed,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(written) - 1} images drawn; all of them: {written[-1]}")


if __name__ == "__main__":
    main()
