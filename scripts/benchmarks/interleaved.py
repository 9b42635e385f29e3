"""Times of several contenders in interleaved turns, with the same rules for each of them."""

import gc
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Turn", "copy_bandwidth", "interleave", "ratio", "saved_bytes"]

_MAX_CALLS = 15
_FLUSHED = 2**28  # bytes, more than any GPU's caches hold
Name = TypeVar("Name", bound=Hashable)


@dataclass
class Turn:
    """Medians over the timed calls of one turn."""

    cpu: float  # seconds, of all threads
    wall: float  # seconds; on a GPU from its first kernel to its last
    page_faults: float  # 0 where the system does not count them


def _page_faults() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _is_gpu(device: str) -> bool:
    return torch.device(device).type == "cuda"


def _synchronize(device: str) -> None:
    if _is_gpu(device):
        torch.cuda.synchronize()


@cache
def _flushed(device: str) -> Tensor:
    return torch.empty(_FLUSHED, dtype=torch.uint8, device=device)


def _timed_call(call: Callable[[], object], device: str) -> Turn:
    if _is_gpu(device):
        return _timed_on_gpu(call, device)
    faults = _page_faults()
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Turn(cpu, wall, _page_faults() - faults)


def _timed_on_gpu(call: Callable[[], object], device: str) -> Turn:
    """Times what the GPU does, with caches that hold nothing of the contender's.

    While the GPU clears them, the CPU launches the first kernels, as in the middle of a model.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _flushed(device).zero_()
    cpu = time.process_time()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return Turn(time.process_time() - cpu, start.elapsed_time(end) / 1e3, 0)


def _take_turn(call: Callable[[], object], device: str, seconds: float) -> Turn:
    gc.collect()
    if seconds > 0:
        call()  # caches and the heap are its predecessor's until then
    _synchronize(device)
    calls = [_timed_call(call, device)]
    while len(calls) < _MAX_CALLS and sum(taken.wall for taken in calls) < seconds:
        calls.append(_timed_call(call, device))
    return Turn(
        median(taken.cpu for taken in calls),
        median(taken.wall for taken in calls),
        median(taken.page_faults for taken in calls),
    )


def interleave(
    calls: Mapping[Name, Callable[[], object]], rounds: int, device: str, seconds: float = 0.3
) -> dict[Name, list[Turn]]:
    """Give each contender one turn per round, so that a busy machine slows all of them alike.

    A turn is one call that is not timed, then timed ones of which the median counts: at least one,
    at most 15, and no further one after ``seconds``. The first calls after another contender's
    page-fault more than any later one, since the heap is not theirs; in training each call follows
    its like. Without ``seconds`` a turn is a single call, which is timed: for calls so long that
    their beginning does not matter.

    Args:
        calls: the contenders.
        rounds: turns of each that count; there is one before them that does not.
        device: ``"cpu"`` or ``"cuda"``.
        seconds: length of a turn, or 0.

    Returns:
        The turns of each contender, in order.
    """
    turns: dict[Name, list[Turn]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            turn = _take_turn(call, device, seconds)
            if number > 0:
                turns[name].append(turn)
    return turns


def ratio(baseline: list[Turn], contender: list[Turn], device: str) -> float:
    """Median over rounds of the baseline's time over the contender's.

    CPU time on CPUs, which other processes disturb least; wall time on GPUs.
    """
    clock = "wall" if _is_gpu(device) else "cpu"
    return median(
        getattr(a, clock) / getattr(b, clock) for a, b in zip(baseline, contender, strict=True)
    )


def copy_bandwidth(device: str) -> float:
    """Bytes read and written per second by a copy that no cache holds."""
    source = torch.zeros(2**26, device=device)
    target = torch.zeros_like(source)
    turn = _take_turn(lambda: target.copy_(source), device, 1.0)
    return 2 * source.numel() * source.element_size() / turn.wall


def saved_bytes(call: Callable[[], object], besides: Iterable[Tensor]) -> int:
    """Bytes that ``call`` keeps for its backward pass, each storage counted once.

    Args:
        call: a forward pass.
        besides: tensors that are kept anyway and not counted, such as parameters.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in besides}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in known:
            kept[address] = tensor  # alive, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return size
