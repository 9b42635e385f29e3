#!/usr/bin/env python
"""Prints how many iterations a model trains in the time that another run took.

Example: %(prog)s output/vit_adapter output/vit_probe
"""

import argparse
import sys

import numpy as np

from vitadapter.evaluation.metrics_file import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="output folder of the run that sets the time")
    parser.add_argument("probe", help="output folder of a few iterations of the other model")
    args = parser.parse_args()
    try:
        seconds = 60 * read_metrics(args.run).minutes()[-1]
        _, times = read_metrics(args.probe).curve("time")
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(round(seconds / np.median(times)))


if __name__ == "__main__":
    main()
