"""Any arguments at all: the kernels accept and refuse what the PyTorch implementation does."""

import math

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ms_deform_attn_cases import BACKWARD_OP, FUSED_BACKWARD_OP, FUSED_OP, OP
from torch import Tensor

from vitadapter.layers.ms_deform_attn_fused_reference import (
    fused_backward_reference,
    fused_forward_reference,
)
from vitadapter.layers.ms_deform_attn_reference import backward_reference, forward_reference

SPECIAL = [math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0, -0.0, 0.5, 1.0]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ODD_DTYPES = [*DTYPES, torch.int64, torch.complex64]
FUZZ = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


@st.composite
def tensors(draw: st.DrawFn, shape: list[int], dtype: torch.dtype, special: bool) -> Tensor:
    """A tensor of that shape, or at times of another; strided anyhow; with special values."""
    shape = list(shape)
    if draw(st.integers(0, 39)) == 0:
        axis = draw(st.integers(0, len(shape) - 1))
        shape[axis] = draw(st.sampled_from([0, 1, shape[axis] + 1]))
    if draw(st.integers(0, 59)) == 0:
        shape = shape[draw(st.integers(0, len(shape))) :]
    if draw(st.integers(0, 59)) == 0:
        dtype = draw(st.sampled_from(ODD_DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    layout = draw(st.sampled_from(["contiguous", "reversed", "strided", "expanded"]))
    drawn = {"reversed": shape[::-1], "strided": [*shape, 2], "expanded": shape[1:]}
    tensor = torch.rand(drawn.get(layout, shape), generator=generator) * 3 - 1
    if special and tensor.numel() > 0:
        for _ in range(draw(st.integers(0, 3))):
            at = draw(st.integers(0, tensor.numel() - 1))
            tensor.view(-1)[at] = draw(st.sampled_from(SPECIAL))
    if dtype == torch.int64:
        tensor = tensor.nan_to_num(0, 0, 0).clamp(-9, 9)
    tensor = tensor.to(dtype)
    if layout == "reversed":
        return tensor.permute(list(reversed(range(tensor.dim()))))
    if layout == "strided":
        return tensor[..., 0]
    return tensor.expand(shape) if layout == "expanded" else tensor


@st.composite
def arguments(draw: st.DrawFn, fused: bool) -> tuple[Tensor, list[int], tuple[Tensor, ...], Tensor]:
    """Value, spatial shapes, the other inputs and grad_output."""
    flat = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    flat = [size for first in flat for size in (first, draw(st.integers(1, 5)))]
    levels, tokens = len(flat) // 2, sum(a * b for a, b in zip(flat[::2], flat[1::2], strict=True))
    if draw(st.integers(0, 29)) == 0:
        flat = draw(st.sampled_from([[], flat[:-1], [-1, *flat[1:]], [2**62, 2**62], [0, *flat]]))
    batch, queries = draw(st.integers(0, 2)), draw(st.sampled_from([0, 1, 3, 70]))
    heads, head_dim = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 4, 8, 17, 32]))
    taps = [batch, queries, heads, levels, draw(st.integers(1, 5))]
    dtype = draw(st.sampled_from(DTYPES))
    coordinate = torch.float64 if dtype == torch.float64 else torch.float32
    per_tap = dtype if fused else coordinate
    special = draw(st.booleans())
    value = draw(tensors([batch, tokens, heads, head_dim], dtype, special))
    others = (
        draw(tensors([*taps, 2], per_tap, special)),
        draw(tensors(taps, per_tap, special)),
    )
    if fused:
        shape = [draw(st.sampled_from([1, batch])), queries, draw(st.sampled_from([1, levels])), 2]
        others = (draw(tensors(shape, coordinate, special)), *others)
    grad_output = draw(tensors([batch, queries, heads * head_dim], dtype, special=False))
    return value, flat, others, grad_output


def _outcome(function: object, *args: object) -> Tensor | tuple[Tensor, ...] | type[Exception]:
    try:
        return function(*args)
    except (TypeError, ValueError) as error:
        return type(error)


def _same_kind(got: object, expected: object) -> bool:
    """The same error, or tensors of the same dtypes and shapes."""
    if isinstance(expected, type) or isinstance(got, type):
        return got is expected
    if isinstance(expected, Tensor):
        got, expected = (got,), (expected,)
    return [(t.dtype, t.shape) for t in got] == [(t.dtype, t.shape) for t in expected]


def _check(fused: bool, case: tuple[Tensor, list[int], tuple[Tensor, ...], Tensor]) -> None:
    value, flat, others, grad_output = case
    forward, backward = (FUSED_OP, FUSED_BACKWARD_OP) if fused else (OP, BACKWARD_OP)
    reference = fused_forward_reference if fused else forward_reference
    backward_of = fused_backward_reference if fused else backward_reference
    expected = _outcome(reference, value, flat, *others)
    got = _outcome(forward, value, flat, *others)
    assert _same_kind(got, expected), (got, expected)
    meta = [tensor.to("meta") for tensor in (value, *others, grad_output)]
    traced = _outcome(forward, meta[0], flat, *meta[1:-1])
    assert _same_kind(traced, expected), (traced, expected)
    if isinstance(expected, Tensor):
        # A weight that is not a number makes the outcome one too, or meets no pixel at all.
        finite = expected.isfinite()
        largest = value[value.isfinite()].abs().amax().item() if value.numel() > 0 else 0.0
        rounding = torch.finfo(value.dtype).eps
        torch.testing.assert_close(
            got[finite],
            expected[finite],
            rtol=max(1e-4, 2 * rounding),
            atol=1e-4 * max(1.0, largest),
        )
    expected = _outcome(backward_of, grad_output, value, flat, *others)
    got = _outcome(backward, grad_output, value, flat, *others)
    assert _same_kind(got, expected), (got, expected)
    traced = _outcome(backward, meta[-1], meta[0], flat, *meta[1:-1])
    assert _same_kind(traced, expected), (traced, expected)


@FUZZ
@given(arguments(fused=False))
def test_unfused(case: tuple[Tensor, list[int], tuple[Tensor, ...], Tensor]) -> None:
    _check(False, case)


@FUZZ
@given(arguments(fused=True))
def test_fused(case: tuple[Tensor, list[int], tuple[Tensor, ...], Tensor]) -> None:
    _check(True, case)
