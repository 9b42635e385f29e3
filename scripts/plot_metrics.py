#!/usr/bin/env python
"""Plots training runs from their metrics.json.

For one run, draws its losses and learning rate; for several, their total losses against training
time.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vitadapter.visualization.curves import plot_loss_against_time, plot_training
from vitadapter.visualization.metrics_file import read_metrics


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="output folder of a run")
    parser.add_argument("--output", required=True, metavar="FILE.png", help="figure to write")
    return parser.parse_args(arguments)


def name_runs(folders: Sequence[str]) -> list[str]:
    """The names of the folders, or their paths if two have the same name."""
    names = [Path(folder).resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else list(folders)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    try:
        runs = [read_metrics(folder) for folder in args.runs]
        if len(runs) == 1:
            plot_training(runs[0], args.output)
        else:
            named = dict(zip(name_runs(args.runs), runs, strict=True))
            plot_loss_against_time(named, args.output)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
