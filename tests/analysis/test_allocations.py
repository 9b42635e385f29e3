"""Bytes of tensors that are alive, against their sizes."""

import torch

from vitadapter.analysis.allocations import HOST, AllocationTracker


def test_the_peak_is_what_was_alive_together() -> None:
    tracker = AllocationTracker()
    with tracker:
        a = torch.zeros(100)
        b = a + 1
        del a
        c = b.double()
        del b
        view = c[10:]
    assert tracker.peak == {"other": 400 + 800}
    assert tracker.live["other"] == 800
    del c
    assert tracker.live["other"] == 800  # the view keeps it
    del view
    assert tracker.live["other"] == 0


def test_kinds_and_what_is_on_the_host() -> None:
    tracker = AllocationTracker()
    before = torch.zeros(10)
    with tracker:
        tracker.label([before], "parameters")
        tracker.kind = "activations"
        kept = before * 2
        tracker.label([kept], HOST)
        tracker.reset_peak()
        torch.zeros(5)
    assert tracker.peak == {"parameters": 40, HOST: 40, "activations": 20}
    assert tracker.live == {"parameters": 40, HOST: 40, "activations": 0}


def test_memory_of_the_host_makes_no_peak() -> None:
    tracker = AllocationTracker()
    with tracker:
        kept = torch.zeros(10)
        peak = tracker.peak
        tracker.kind = HOST
        torch.zeros(1000)
    assert tracker.peak == peak == {"other": kept.nbytes}
