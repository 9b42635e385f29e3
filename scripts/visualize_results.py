#!/usr/bin/env python
"""Draws predictions beside the ground truth, from the files that an evaluation leaves."""

import argparse
import sys
from collections.abc import Sequence

from vitadapter.visualization.gallery import draw_gallery


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--json-file", required=True, help="annotations in COCO's format")
    parser.add_argument("--image-root", required=True, help="folder of the images")
    parser.add_argument(
        "--results", required=True, help="coco_instances_results.json of an evaluation"
    )
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument("--num-images", type=int, default=16, help="at most")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="in [0, 1]")
    parser.add_argument("--seed", type=int, default=0, help="decides which images")
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
