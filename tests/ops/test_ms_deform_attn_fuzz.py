"""Any arguments at all: the CPU kernels accept and refuse what the PyTorch implementation does."""

import torch
from hypothesis import HealthCheck, given, settings
from ms_deform_attn_fuzz import FuzzCase, assert_close, assert_same_kind, cases, outcomes

import vitadapter.ops  # noqa: F401  (registers the operators)

FUZZ = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


def _check(case: FuzzCase) -> None:
    expected = outcomes(case)
    got = outcomes(case, torch.ops.vitadapter)
    traced = outcomes(case.to("meta"), torch.ops.vitadapter)
    for direction in range(2):
        assert_same_kind(got[direction], expected[direction])
        assert_same_kind(traced[direction], expected[direction])
    assert_close(case, got)


@FUZZ
@given(cases(fused=False))
def test_unfused(case: FuzzCase) -> None:
    _check(case)


@FUZZ
@given(cases(fused=True))
def test_fused(case: FuzzCase) -> None:
    _check(case)
