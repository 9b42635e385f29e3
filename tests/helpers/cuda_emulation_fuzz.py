"""Any arguments at all, on the emulated device. Usage: cuda_emulation_fuzz.py LIBRARY CASES

By itself it is for a float32 build with sanitizers, which have to be loaded before Python.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from cuda_emulation_cases import deterministic, load
from hypothesis import HealthCheck, given, settings
from ms_deform_attn_fuzz import FuzzCase, assert_close, assert_same_kind, cases, outcomes
from torch._ops import _OpNamespace

import vitadapter.ops  # noqa: F401  (registers the operators)

__all__ = ["fuzz"]


def fuzz(
    emulated: _OpNamespace, fused: bool, count: int, dtypes: Sequence[torch.dtype] | None = None
) -> None:
    """Check that reference, CPU kernels and emulated CUDA accept, refuse and compute the same.

    Args:
        emulated: The operators on the emulated device.
        fused: Which form.
        count: Number of random cases.
        dtypes: Those of the values; all if None.
    """

    @settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        database=None,
    )
    @given(cases(fused) if dtypes is None else cases(fused, dtypes))
    def check(case: FuzzCase) -> None:
        expected = outcomes(case)
        on_cpu = outcomes(case, torch.ops.vitadapter)
        got = outcomes(case, emulated)
        with deterministic():
            by_rows = outcomes(case, emulated)
        for direction in range(2):
            for outcome in (on_cpu, got, by_rows):
                assert_same_kind(outcome[direction], expected[direction])
        for outcome in (on_cpu, got, by_rows):
            assert_close(case, outcome)

    check()


if __name__ == "__main__":
    torch.set_num_threads(1)
    operators = load(Path(sys.argv[1]), float_only=True)
    for form in (False, True):
        fuzz(operators, form, int(sys.argv[2]) // 2, [torch.float32])
