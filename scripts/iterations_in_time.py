#!/usr/bin/env python
"""Prints how many iterations a model can train in the time that another run took.

Example: %(prog)s output/vit_adapter output/vit_probe
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from vitadapter.visualization.metrics_file import read_metrics


def seconds_per_iteration(run: str) -> float:
    """The median over a run, which leaves out the slow first iterations."""
    metrics = read_metrics(run)
    _, times = metrics.curve("time")
    if not len(times):
        raise ValueError(f"{metrics.source} must have 'time' in some row, found in none")
    return float(np.median(times))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="output folder of the run that sets the time")
    parser.add_argument("probe", help="output folder of a short run of the model")
    args = parser.parse_args(arguments)
    try:
        seconds = 60 * read_metrics(args.run).minutes()[-1]
        iterations = round(seconds / seconds_per_iteration(args.probe))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(iterations)


if __name__ == "__main__":
    main()
