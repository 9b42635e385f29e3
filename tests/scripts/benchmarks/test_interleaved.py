"""Turns, ratios and saved bytes on calls whose outcome is known."""

import mmap
import time

import pytest
import torch
from torch.nn import functional as F

from benchmarks.interleaved import Turn, interleave, ratio, saved_bytes


def test_every_contender_warms_up_in_every_turn() -> None:
    order: list[str] = []
    turns = interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, device="cpu"
    )
    # Three rounds, of which the first does not count; a call more per turn than is timed.
    assert order == (["a"] * 16 + ["b"] * 16) * 3
    assert {name: len(taken) for name, taken in turns.items()} == {"a": 2, "b": 2}


def test_a_turn_ends_in_time() -> None:
    calls = []
    interleave({"slow": lambda: (calls.append(1), time.sleep(0.01))}, 1, "cpu", seconds=0.005)
    assert len(calls) == 4  # two turns of one call each, after the one that is not timed


def test_clocks() -> None:
    def work() -> None:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    turns = interleave({"wait": lambda: time.sleep(0.02), "work": work}, rounds=3, device="cpu")
    assert all(turn.wall >= 0.02 and turn.cpu < 0.02 for turn in turns["wait"])
    assert all(turn.cpu >= 0.02 for turn in turns["work"])
    assert ratio(turns["work"], turns["wait"], "cpu") > 2


@pytest.mark.gpu
def test_on_a_gpu_its_kernels_are_timed() -> None:
    """Whether the call waits for them or not."""
    matrix = torch.randn(4096, 4096, device="cuda")

    def products(number: int) -> None:
        for _ in range(number):
            torch.mm(matrix, matrix)

    calls = {"one": lambda: products(1), "four": lambda: products(4)}
    turns = interleave(calls, 5, "cuda", seconds=0)
    assert 3 < ratio(turns["four"], turns["one"], "cuda") < 5


def test_page_faults_are_counted() -> None:
    def touch() -> None:
        # Mapped by the test itself: malloc may have freed memory at hand, which has no faults.
        with mmap.mmap(-1, 2**26) as memory:
            for page in range(0, len(memory), mmap.PAGESIZE):
                memory[page] = 1

    (turn,) = interleave({"touch": touch}, rounds=1, device="cpu")["touch"]
    assert turn.page_faults > 20  # in pages of 4 KiB or in huge ones


def test_ratio_is_the_median_over_rounds() -> None:
    baseline = [Turn(cpu, wall, 0) for cpu, wall in ((4, 9), (60, 60), (8, 9))]
    contender = [Turn(cpu, wall, 0) for cpu, wall in ((2, 3), (2, 20), (2, 9))]
    assert ratio(baseline, contender, "cpu") == 4
    assert ratio(baseline, contender, "cuda") == 3


def test_saved_bytes_count_each_storage_once() -> None:
    x, weight = torch.randn(10, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)

    def layer() -> torch.Tensor:
        hidden = F.linear(x, weight).exp()  # saves its own output, which the next one reads
        return hidden * hidden.view(10, 4)

    assert saved_bytes(layer, [x, weight]) == 10 * 4 * 4
    assert saved_bytes(layer, [x]) == 10 * 4 * 4 + 4 * 4 * 4
