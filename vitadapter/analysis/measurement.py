"""Times real steps of training and inference on a device, and measures their peaks of memory."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf
from tabulate import tabulate
from torch._C._profiler import _EventType, _ExtraFields_Allocation, _ProfilerEvent

from vitadapter.analysis.steps import Steps, Workload
from vitadapter.engine.overrides import apply_overrides

__all__ = ["PRECISIONS", "Measurement", "measure", "measured_table", "profiled_peak"]

_REPEATS = 3
PRECISIONS = {
    "float32": ["train.amp.enabled=False", "train.inference.amp_dtype=null"],
    "bfloat16": [
        "train.amp.enabled=True",
        "train.amp.dtype=bfloat16",
        "train.inference.amp_dtype=bfloat16",
    ],
}
"""The overrides with which a config trains and predicts in each."""


@dataclass(frozen=True)
class Measurement:
    """What a step costs.

    Attributes:
        step: "training" or "inference", and its precision.
        seconds: median of several steps, after one that does not count.
        peak: of memory in bytes, weights and optimizer included.
    """

    step: str
    seconds: float
    peak: int


def _allocations(events: Sequence[_ProfilerEvent]) -> Iterator[tuple[int, int]]:
    """When memory was allocated or freed, and how much (negative if freed)."""
    for event in events:
        if event.tag == _EventType.Allocation:
            allocation = cast(_ExtraFields_Allocation, event.extra_fields)
            yield event.start_time_ns, allocation.alloc_size
        yield from _allocations(event.children)


def profiled_peak(step: Callable[[], object]) -> int:
    """The growth of the CPU's memory in bytes at the peak of a step, as PyTorch's profiler sees it.

    Unlike an `AllocationTracker`, it sees what kernels allocate inside of themselves.
    """
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profiler:
        step()
    now = peak = 0
    # It returns None only before it has run.
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    for _, size in sorted(_allocations(results.experimental_event_tree())):
        now += size
        peak = max(peak, now)
    return peak


def _peak(step: Callable[[], object], steps: Steps, device: torch.device) -> int:
    if device.type != "cuda":
        return steps.live_bytes + profiled_peak(step)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device)


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(cfg: DictConfig, workload: Workload) -> list[Measurement]:
    """Runs a config's model on `train.device`, with random weights, in float32 and bfloat16.

    Args:
        cfg: the whole config.
        workload: the images.

    Raises:
        ValueError: the model cannot be built.
    """
    device, images = torch.device(cfg.train.device), workload.images(cfg)
    found = []
    for precision, overrides in PRECISIONS.items():
        changed = deepcopy(cfg)
        if OmegaConf.select(cfg, "train.inference") is None:
            overrides = [x for x in overrides if "inference" not in x]
        apply_overrides(changed, overrides)
        steps = Steps(changed, images, device=cfg.train.device)
        for name, step in (("training", steps.run_training), ("inference", steps.run_inference)):
            seconds = _seconds(step, device)
            found.append(Measurement(f"{name}, {precision}", seconds, _peak(step, steps, device)))
    return found


def measured_table(measurements: Sequence[Measurement], workload: Workload, device: str) -> str:
    """The measurements as text."""
    rows = [(m.step, f"{m.seconds:.3f}", f"{m.peak / 2**30:.2f}") for m in measurements]
    height, width = workload.size
    header = (f"{workload.batch} x {height} x {width} on {device}", "seconds", "peak (GiB)")
    align = ("left", "right", "right")
    return tabulate(rows, header, tablefmt="github", disable_numparse=True, colalign=align)
