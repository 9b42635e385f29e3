#!/usr/bin/env python
"""Draws image, ground truth and prediction of a finished evaluation side by side.

Example: %(prog)s --config-file CONFIG --results OUTPUT_DIR/inference --output pictures
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import instantiate

from vitadapter.data.sem_seg import sem_seg_metadata
from vitadapter.engine.overrides import load_config
from vitadapter.visualization.sem_seg_gallery import draw_sem_seg_gallery


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="config of the evaluation"
    )
    parser.add_argument("--results", required=True, help="folder with sem_seg_predictions.json")
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument(
        "--num-images", type=int, default=8, help="draw at most this many (default: 8)"
    )
    parser.add_argument("--seed", type=int, default=0, help="selects the images (default: 0)")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="key=value; must come last")
    args = parser.parse_args(arguments)
    if not Path(args.config_file).is_file():
        parser.error(f"--config-file {args.config_file} does not exist or is a folder")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    try:
        cfg = load_config(args.config_file, args.overrides)
        dataset = cfg.dataset
        metadata = sem_seg_metadata(dataset.test.name, dataset.class_names, dataset.num_classes)
        written = draw_sem_seg_gallery(
            instantiate(cfg.dataloader.test.dataset),
            Path(args.results, "sem_seg_predictions.json"),
            args.output,
            read_label=instantiate(cfg.dataloader.test.mapper.read_label),
            class_names=metadata.stuff_classes,
            num_images=args.num_images,
            seed=args.seed,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(written) - 1} images drawn; all of them: {written[-1]}")


if __name__ == "__main__":
    main()
