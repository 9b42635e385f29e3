#!/usr/bin/env python
"""Compares estimates of training memory with real steps on the CPU, watched by PyTorch's profiler.

Example: %(prog)s COCO/mask_rcnn_vit_adapter_t_deit_1x --batch 2 --sizes 128 192 256
"""

import argparse
from collections.abc import Sequence

import torch
from omegaconf import DictConfig

from vitadapter.analysis import Workload, training_peak
from vitadapter.analysis.measurement import profiled_peak
from vitadapter.analysis.steps import Steps
from vitadapter.engine.overrides import load_config

MIB = 2**20


def measured_peak(cfg: DictConfig, workload: Workload) -> tuple[int, int]:
    """The peaks of a real training step in bytes: the profiler's, and that of the tensors alone."""
    torch.manual_seed(0)
    steps = Steps(cfg, workload.images(cfg))
    before, counted = steps.live_bytes, []
    growth = profiled_peak(lambda: counted.append(steps.count_training().total()))
    return before + growth, counted[0]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", help="names of experiments, or LazyConfig files")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 192, 256], help="pixels")
    args = parser.parse_args(arguments)
    print("| config | pixels | estimated (MiB) | tensors (MiB) | profiler (MiB) | error |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in args.configs:
        for size in args.sizes:
            cfg, workload = load_config(name), Workload((size, size), args.batch)
            estimate = training_peak(cfg, workload, on_gpu=False).total()
            profiled, tensors = measured_peak(cfg, workload)
            row = [f"{n / MIB:.0f}" for n in (estimate, tensors, profiled)]
            error = f"{100 * (estimate / profiled - 1):+.1f} %"
            print(f"| {name} | {size} | {' | '.join(row)} | {error} |", flush=True)


if __name__ == "__main__":
    main()
