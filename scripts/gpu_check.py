#!/usr/bin/env python
"""Measures parts of what scripts/gpu_check.sh checks, or writes its report.

Each part writes WORK/PART.json after each of its cases, and ends with 1 if one has failed.
"""

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_report import write_report
from benchmarks.sections import run_cases

PARTS = ("operator", "backbone", "compiled", "detectors", "training")


def measure(parts: Sequence[str], work: Path, dry_run: bool) -> bool:
    """Runs the cases of parts; whether none has failed."""
    from vitadapter.known_warnings import ignore_warnings_at_import

    ignore_warnings_at_import()

    from benchmarks.gpu_cases import DRY_RUN, ON_GPU, section_cases

    gc.freeze()  # what has been imported stays: the collections between timed calls need not look
    scale = DRY_RUN if dry_run else ON_GPU
    ended = [run_cases(section_cases(p, scale, work), work / f"{p}.json") for p in parts]
    return all(ended)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder of what the parts find, and of their logs")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--parts", nargs="+", choices=PARTS, help="what to measure")
    task.add_argument("--output", type=Path, help="folder to write the report to")
    parser.add_argument("--dry-run", action="store_true", help="at toy size on the CPU")
    args = parser.parse_args(arguments)
    if args.parts:
        return 0 if measure(args.parts, args.work, args.dry_run) else 1
    return 1 if write_report(args.work, args.output, PARTS, args.dry_run) else 0


if __name__ == "__main__":
    sys.exit(main())
