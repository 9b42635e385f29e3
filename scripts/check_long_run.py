#!/usr/bin/env python
"""Trains, and prints what the processes hold meanwhile, which should not grow.

Any config will do; a long run with workers, evaluations and checkpoints is made by

  %(prog)s CONFIG train.max_iter=2000 train.eval_period=100 train.checkpointer.period=100 \\
      train.checkpointer.max_to_keep=2 dataloader.train.num_workers=2 dataloader.test.num_workers=2

Exits with 1 if the training fails or something grows. Works on Linux.
"""

import argparse
import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitadapter.engine.overrides import load_config
from vitadapter.engine.settings import expand_home
from vitadapter.visualization.metrics_file import METRICS_NAME, read_metrics

SHARED_MEMORY = Path("/dev/shm")
POLL_SECONDS = 0.2
# Allocators keep more or less of what was freed: this much may be chance.
TOLERATED_MB = 0.03


class Usage(NamedTuple):
    """What a training process and its descendants hold."""

    iteration: int
    processes: int
    memory_mb: float  # of all; shared memory is divided among those that share it
    handles: int  # of the training process
    temporary: int  # files
    shared: int  # files in /dev/shm of this user that are new
    output: int  # files


def descendants(process: int) -> list[int]:
    """The ids of a process and of those below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [process]
    for member in found:
        found += children.get(member, [])
    return found


def memory_kb(process: int) -> int:
    """The memory of a process without its programs and libraries; 0 if it has ended.

    How much those count for depends on what else uses them.
    """
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    kinds = ("Pss_Anon:", "Pss_Shmem:")
    return sum(int(line.split()[1]) for line in lines if line.startswith(kinds))


def count_files(folder: Path) -> int:
    """How many files there are in a folder and below."""
    return sum(len(names) for _, _, names in os.walk(folder))


def shared_files() -> set[str]:
    """The names of this user's files in shared memory."""
    names = set()
    for file in SHARED_MEMORY.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has been removed meanwhile
            if file.stat().st_uid == os.getuid():
                names.add(file.name)
    return names


def iteration_of(output: Path) -> int:
    """The last iteration of a run that has written its metrics; 0 before."""
    try:
        steps, _ = read_metrics(str(output)).curve("total_loss")
    except (OSError, ValueError):
        return 0
    return int(steps[-1]) if len(steps) else 0


def watch(
    process: subprocess.Popen[bytes], output: Path, temporary: Path, every: int
) -> Iterator[Usage]:
    """Looks at a training process each time that so many more iterations are complete."""
    before, due = shared_files(), every
    metrics, seen = output / METRICS_NAME, -1
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        size = metrics.stat().st_size if metrics.is_file() else -1
        if size == seen:
            continue
        seen = size
        if (iteration := iteration_of(output)) < due:
            continue
        due = iteration // every * every + every
        members = descendants(process.pid)
        try:
            handles = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        except OSError:  # it has just ended
            return
        yield Usage(
            iteration,
            len(members),
            sum(map(memory_kb, members)) / 1024,
            handles,
            count_files(temporary),
            len(shared_files() - before),
            count_files(output),
        )


def growth(usages: Sequence[Usage]) -> list[str]:
    """What the last third has more of than the middle one: each in a sentence."""
    third = len(usages) // 3
    if third == 0:
        return []
    middle, last = np.array(usages[third : 2 * third]), np.array(usages[-third:])
    found = []
    for name in Usage._fields[1:]:
        column = Usage._fields.index(name)
        # Workers come and go, so that the lowest value tells most.
        before, after = middle[:, column].min(), last[:, column].min()
        if after > before * (1 + TOLERATED_MB if name == "memory_mb" else 1):
            found.append(f"{name} has grown from {before:g} to {after:g}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="name, file or checkpoint, as of vitadapter train")
    parser.add_argument("--every", type=int, default=100, help="iterations between two lines")
    parser.add_argument("opts", metavar="key=value", nargs="*", help="overrides")
    args = parser.parse_intermixed_args(arguments)
    try:
        output = Path(expand_home(load_config(args.config, args.opts).train.output_dir))
    except ValueError as error:
        sys.exit(f"error: {error}")
    if args.every < 1:
        parser.error(f"--every must be positive, got {args.every}")
    # The last line of the metrics may be read while it is written.
    logging.disable(logging.WARNING)
    usages = []
    print("".join(f"{name:>12}" for name in Usage._fields))
    with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "vitadapter", "train", args.config, *args.opts]
        environment = {**os.environ, "TMPDIR": temporary}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            for usage in watch(process, output, Path(temporary), args.every):
                usages.append(usage)
                print("".join(f"{value:12.6g}" for value in usage), flush=True)
        finally:
            process.terminate()
            code = process.wait()
        if code != 0:
            log.seek(0)
            print(log.read().decode(errors="replace")[-5000:])
            sys.exit(f"error: the training has ended with {code}")
        left = count_files(Path(temporary))
    found = growth(usages) + ([f"{left} temporary files are left"] if left else [])
    print("; ".join(found) or "nothing has grown")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
