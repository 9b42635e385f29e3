#!/usr/bin/env python
"""Compares finished training runs: prints a table and draws AP and loss against time.

Example: %(prog)s ViTDet=output/vitdet ViT-Adapter=output/vit_adapter --output comparison.png
"""

import argparse
import sys
from collections.abc import Sequence

from vitadapter.commands.arguments import named
from vitadapter.visualization.curves import plot_comparison, plot_convergence
from vitadapter.visualization.metrics_file import (
    RunMetrics,
    format_table,
    read_metrics,
    summarize,
)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN_DIR", help="output folder of a run")
    parser.add_argument(
        "--output", metavar="FILE.png", help="figure to draw; default: only print the table"
    )
    parser.add_argument(
        "--convergence", metavar="FILE.png", help="figure of loss and AP against iterations"
    )
    parser.add_argument("--title", help="title of the figure")
    return parser.parse_args(arguments)


def read_runs(named_folders: Sequence[str]) -> dict[str, RunMetrics]:
    """Metrics by name from arguments of the form NAME=RUN_DIR."""
    runs = []
    for argument in named_folders:
        name, _, folder = argument.partition("=")
        if not name or not folder:
            raise ValueError(f"a run must be given as NAME=RUN_DIR, got {argument!r}")
        runs.append((name, folder))
    return {name: read_metrics(folder) for name, folder in named(runs).items()}


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    try:
        runs = read_runs(args.runs)
        table = format_table([summarize(name, metrics) for name, metrics in runs.items()])
        if args.output:
            plot_comparison(runs, args.output, args.title)
        if args.convergence:
            plot_convergence(runs, args.convergence, args.title)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(table)
    for figure in filter(None, (args.output, args.convergence)):
        print(f"\nfigure written to {figure}")


if __name__ == "__main__":
    main()
