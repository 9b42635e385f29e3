"""Cases of the check on a GPU that fail, that find no memory, or that have no peers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import attention_peers, gpu_cases, sections
from vitadapter.ops import ms_deform_attn


def test_cases_that_fail_or_find_no_memory(tmp_path: Path) -> None:
    def broken() -> Iterator[sections.Figures]:
        raise ValueError("no such net")
        yield {}

    def too_large() -> Iterator[sections.Figures]:
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield {}

    cases = {
        "broken": broken,
        "too large": too_large,
        "fine": lambda: iter([{"implementation": "ours", "ms": 1.0}]),
        "peer": lambda: iter([{"implementation": "mmcv", "left_out": "cannot be imported"}]),
    }
    path = tmp_path / "part.json"
    assert not sections.run_cases(cases, path)
    outcome = sections.read_outcome(path)
    assert outcome.failed == {"broken": "ValueError: no such net"}
    assert outcome.left_out == {
        "too large": sections.NO_MEMORY,
        "peer: mmcv": "cannot be imported",
    }
    assert {"case": "fine", "implementation": "ours", "ms": 1.0} in outcome.rows


def test_a_backbone_that_does_not_fit_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    first_calls = gpu_cases._first_calls

    def only_ours(name: str, *arguments: object) -> sections.Figures:
        if name == "reference":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return first_calls(name, *arguments)

    monkeypatch.setattr(gpu_cases, "_first_calls", only_ours)
    rows = list(gpu_cases._backbone("tiny", "float32", gpu_cases.DRY_RUN, compiled=False))
    assert rows[0] == {"implementation": "reference", "left_out": sections.NO_MEMORY}
    assert [row["implementation"] for row in rows[1:]] == ["ours", "ViTDet"]


def test_peers_that_fail_are_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> attention_peers.Peer:
        raise OSError("libcudart.so.11: cannot open shared object file")

    def right(value: Tensor, shapes: Tensor, starts: Tensor, *taps: Tensor) -> Tensor:
        return ms_deform_attn(value, [(h, w) for h, w in shapes.tolist()], *taps)

    loaders = {
        "missing": missing,
        "right": lambda: right,
        "wrong": lambda: lambda *tensors: 1.2 * right(*tensors),
        "broken": lambda: lambda *tensors: tensors[0].no_such_method(),
    }
    monkeypatch.setattr(attention_peers, "_LOADERS", loaders)
    attention_peers.load_peers.cache_clear()
    try:
        rows = list(gpu_cases._peers(gpu_cases.DRY_RUN))
        assert rows.pop(0)["copy_gb_per_s"] > 0
        rows += gpu_cases._operator("injector", "T", torch.float32, gpu_cases.DRY_RUN)
    finally:
        attention_peers.load_peers.cache_clear()
    left_out = {row["implementation"]: row["left_out"] for row in rows if "left_out" in row}
    assert left_out["missing"].startswith("cannot be imported: OSError: libcudart.so.11")
    assert left_out["wrong"].startswith("ValueError: its answers differ")
    assert "no_such_method" in left_out["broken"]
    names = {row["implementation"] for row in rows if "left_out" not in row}
    assert names == {"grid_sample", "ours", "softmax + grid_sample", "ours, fused", "right"}
