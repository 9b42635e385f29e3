#!/usr/bin/env python
"""Compares training by DDP and FSDP2, with several processes on the CPU, with that by one.

Prints the largest differences of losses and weights after some iterations of tiny models, and with
--memory instead, of a larger one, the peak of memory of each process, and how long saving takes.

Examples:
  %(prog)s --processes 2 4
  %(prog)s --processes 2 4 --memory COCO/mask_rcnn_vit_adapter_s_deit_1x
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.utils import comm

from benchmarks.parallel_training import (
    CASES,
    Case,
    Costs,
    build_run,
    largest_difference,
    measure,
    train,
)
from vitadapter.engine.launch import Place, launch
from vitadapter.engine.parallel import PARALLEL

MIB = 2**20
Job = tuple[str, Sequence[str], str | None, int, Path]


def file_of(folder: Path, name: str, parallel: str, processes: int) -> Path:
    return folder / f"{name} {parallel} {processes}.pt"


def run(job: Job, place: Place) -> None:
    """One process: trains every case, or measures an experiment."""
    parallel, names, config, iterations, folder = job
    torch.set_num_threads(1)
    place.join("cpu")
    if config is not None:
        backbone = "model.backbone.bottom_up" if config.startswith("COCO/") else "model.backbone"
        cfg = Case(config, backbone, ("norm=FrozenBN",), ()).load(parallel, place.world_size)
        every = comm.all_gather(measure(cfg, folder))
        if comm.is_main_process():
            print_costs(parallel, every)
        return
    for name in names:
        case = CASES[name]
        cfg = case.load(parallel, place.world_size)
        result = train(*build_run(cfg, is_double=case.is_double), iterations)
        if comm.is_main_process():
            torch.save(result, file_of(folder, name, parallel, place.world_size))


def print_costs(parallel: str, every: Sequence[Costs]) -> None:
    peaks = ", ".join(f"{costs.peak / MIB:.0f}" for costs in every)
    stalled, saved = (
        max(seconds) for seconds in zip(*((c.stalled, c.saved) for c in every), strict=True)
    )
    print(
        f"{parallel}, {len(every)} processes: peaks of {peaks} MiB; a save keeps training waiting "
        f"for {stalled:.2f} s and is on the disk after {saved:.2f} s",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4], choices=[2, 4])
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--memory", metavar="CONFIG", help="measure memory, of this experiment")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for processes in (1, *args.processes):
            for parallel in PARALLEL if processes > 1 else ["ddp"]:
                job = (parallel, args.models, args.memory, args.iterations, folder)
                launch(run, job, num_gpus=processes)
        if args.memory is None:
            print_differences(folder, args.models, args.processes)


def print_differences(folder: Path, names: Sequence[str], numbers: Sequence[int]) -> None:
    print("| model | processes | | losses | weights |\n|---|---:|---|---:|---:|")
    for name in names:
        alone = torch.load(file_of(folder, name, "ddp", 1), weights_only=False)
        for processes in numbers:
            for parallel in PARALLEL:
                file = file_of(folder, name, parallel, processes)
                result = torch.load(file, weights_only=False)
                losses, weights = largest_difference(result, alone)
                print(f"| {name} | {processes} | {parallel} | {losses:.1e} | {weights:.1e} |")


if __name__ == "__main__":
    main()
