"""Random arguments of the deformable-attention operators, right and wrong, and their judges."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch._ops import _OpNamespace

from vitadapter.ops.ms_deform_attn import FUSED, UNFUSED

__all__ = ["FuzzCase", "Outcome", "assert_close", "assert_same_kind", "cases", "outcomes"]

SPECIAL = [math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0, -0.0, 0.5, 1.0]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

Outcome = list[Tensor] | type[Exception]


@dataclass
class FuzzCase:
    """Arguments of either form. ``special`` says where NaN, infinities and 1e30 may be."""

    fused: bool
    special: str  # "nowhere", "places" (locations, offsets, reference points) or "anywhere"
    value: Tensor
    shapes: list[int]
    taps: list[Tensor]
    grad_output: Tensor

    def to(self, target: torch.dtype | str) -> "FuzzCase":
        """The same with every tensor converted."""
        return FuzzCase(
            self.fused,
            self.special,
            self.value.to(target),
            self.shapes,
            [tensor.to(target) for tensor in self.taps],
            self.grad_output.to(target),
        )


# --- drawing ------------------------------------------------------------------------------------


@st.composite
def tensors(
    draw: st.DrawFn,
    shape: list[int],
    dtype: torch.dtype,
    special: bool,
    dtypes: Sequence[torch.dtype],
) -> Tensor:
    """A tensor of that shape, or at times of another; strided anyhow; with special values."""
    shape = list(shape)
    if draw(st.integers(0, 39)) == 0:
        axis = draw(st.integers(0, len(shape) - 1))
        shape[axis] = draw(st.sampled_from([0, 1, shape[axis] + 1]))
    if draw(st.integers(0, 59)) == 0:
        shape = shape[draw(st.integers(0, len(shape))) :]
    if draw(st.integers(0, 59)) == 0:
        dtype = draw(st.sampled_from([*dtypes, torch.int64, torch.complex64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    layout = draw(st.sampled_from(["contiguous", "reversed", "strided", "expanded", "shifted"]))
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
    if layout == "shifted":  # not where vectors of 16 bytes may begin
        memory = tensor.new_empty(tensor.numel() + 1)
        return memory[1:].view(tensor.shape).copy_(tensor)
    return tensor.expand(shape) if layout == "expanded" else tensor


@st.composite
def cases(draw: st.DrawFn, fused: bool, dtypes: Sequence[torch.dtype] = tuple(DTYPES)) -> FuzzCase:
    """Small problems of any sizes; about one in four breaks a rule."""
    flat = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    flat = [size for first in flat for size in (first, draw(st.integers(1, 5)))]
    if draw(st.integers(0, 49)) == 0:
        flat = [1, 1] * draw(st.sampled_from([127, 128, 129, 200]))
    levels, tokens = len(flat) // 2, sum(a * b for a, b in zip(flat[::2], flat[1::2], strict=True))
    if draw(st.integers(0, 29)) == 0:
        flat = draw(st.sampled_from([[], flat[:-1], [-1, *flat[1:]], [2**62, 2**62], [0, *flat]]))
    batch = draw(st.integers(0, 2))
    queries = draw(st.sampled_from([0, 1, 3, 70])) if levels < 4 else 1
    heads, head_dim = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 4, 8, 16, 17, 32, 64]))
    taps = [batch, queries, heads, levels, draw(st.integers(1, 5))]
    dtype = draw(st.sampled_from(dtypes))
    coordinate = torch.float64 if dtype == torch.float64 else torch.float32
    per_tap = dtype if fused else coordinate
    special = draw(st.sampled_from(["nowhere", "places", "anywhere"]))
    places, others = special != "nowhere", special == "anywhere"
    inputs = [
        draw(tensors([*taps, 2], per_tap, places, dtypes)),
        draw(tensors(taps, per_tap, others, dtypes)),
    ]
    if fused:
        shape = [draw(st.sampled_from([1, batch])), queries, draw(st.sampled_from([1, levels])), 2]
        inputs.insert(0, draw(tensors(shape, coordinate, places, dtypes)))
    return FuzzCase(
        fused,
        special,
        draw(tensors([batch, tokens, heads, head_dim], dtype, others, dtypes)),
        flat,
        inputs,
        draw(tensors([batch, queries, heads * head_dim], dtype, False, dtypes)),
    )


# --- judging ------------------------------------------------------------------------------------


def _outcome(function: Callable[..., Tensor | tuple[Tensor, ...]], *args: object) -> Outcome:
    try:
        result = function(*args)
    except (TypeError, ValueError) as error:
        return type(error)
    return [result] if isinstance(result, Tensor) else list(result)


def outcomes(case: FuzzCase, operators: _OpNamespace | None = None) -> tuple[Outcome, Outcome]:
    """What forward and backward give, by the operators of a namespace or by the reference."""
    form = FUSED if case.fused else UNFUSED
    if operators is None:
        forward, backward = form.forward_reference, form.backward_reference
    else:
        forward, backward = (
            getattr(operators, name) for name in (form.name, f"{form.name}_backward")
        )
    arguments = (case.value, case.shapes, *case.taps)
    return _outcome(forward, *arguments), _outcome(backward, case.grad_output, *arguments)


def assert_same_kind(got: Outcome, expected: Outcome) -> None:
    """The same error, or tensors of the same dtypes and shapes."""
    if isinstance(expected, type) or isinstance(got, type):
        assert got is expected, (got, expected)
        return
    kinds = [[(t.dtype, t.shape) for t in outcome] for outcome in (got, expected)]
    assert kinds[0] == kinds[1], kinds


def _pixels(case: FuzzCase) -> Tensor:
    """Where each tap lies in its map, ``(B, Q, heads, levels, points, 2)``, in float64."""
    sizes = torch.tensor(case.shapes, dtype=torch.float64).view(-1, 1, 2).flip(-1)
    if not case.fused:
        return case.taps[0].double() * sizes - 0.5
    references, offsets, _ = (tensor.double() for tensor in case.taps)
    return references[:, :, None, :, None] * sizes + offsets - 0.5


def _cancels(case: FuzzCase) -> bool:
    """Whether a huge reference point and a huge offset meet inside a map.

    1e30 and -1e30: float32 keeps nothing of the half pixel that is added to them.
    """
    if not case.fused:
        return False
    return bool(((case.taps[1].double().abs() > 1e6) & (_pixels(case).abs() < 1e6)).any())


def _slopes_jump(case: FuzzCase) -> bool:
    """Whether a tap lies where rounding decides which four pixels it is among."""
    pixels = _pixels(case)
    return bool(((pixels - pixels.round()).abs() < 1e-4).any())


def assert_close(case: FuzzCase, got: tuple[Outcome, Outcome]) -> None:
    """What a kernel gave, against the reference in float64 on the same numbers.

    Where weights and values are all numbers, gradients too, but for those of places at which they
    jump.
    """
    if isinstance(got[0], type) or _cancels(case):
        return
    expected = outcomes(case.to(torch.float64))
    largest = case.value[case.value.isfinite()].abs().amax().item() if case.value.numel() else 0.0
    _assert_close_where_finite(got[0][0], expected[0][0], max(1.0, largest))
    if isinstance(got[1], type) or case.special == "anywhere" or _slopes_jump(case):
        return
    for ours, theirs in zip(got[1], expected[1], strict=True):
        scale = theirs.abs().amax().item() if theirs.numel() else 0.0
        _assert_close_where_finite(ours, theirs, max(1.0, scale))


def _assert_close_where_finite(got: Tensor, expected: Tensor, scale: float) -> None:
    finite = expected.to(got.dtype).isfinite()
    tolerance = max(1e-4, 2 * torch.finfo(got.dtype).eps)
    torch.testing.assert_close(
        got[finite].double(), expected[finite], rtol=tolerance, atol=tolerance * scale
    )
