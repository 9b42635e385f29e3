"""The argument checks of the deformable-attention operators where no C++ kernel runs.

They are used in tracing, on the meta device, and in the PyTorch implementation. The kernels have
the same rules in `kernels/ms_deform_attn/check_inputs.h`, since they can be called without Python,
and limits of their own, since they count tokens, channels and points in 32 bits.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Argument",
    "check_arguments",
    "check_grad_output",
    "coordinate_dtype",
    "flatten_spatial_shapes",
    "split_levels",
]

_VALUE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_MAY_BE_EMPTY = ("batch", "tokens", "queries")


class Argument(NamedTuple):
    """The rule for one tensor.

    Attributes:
        axes: names of its axes; an axis `1|name` may have the size 1 instead.
        is_coordinate: whether its dtype is `coordinate_dtype` of the value's, not the value's own.
    """

    axes: str
    is_coordinate: bool = False

    def dtype(self, value: torch.dtype) -> torch.dtype:
        """Returns the dtype that it must have with a value of this dtype."""
        return coordinate_dtype(value) if self.is_coordinate else value


_VALUE = Argument("batch tokens heads head_dim")
_GRAD_OUTPUT = Argument("batch queries channels")


def coordinate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of locations, weights and sums for a value of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def flatten_spatial_shapes(spatial_shapes: Sequence[tuple[int, int]]) -> list[int]:
    """Converts `[(h0, w0), (h1, w1), ...]` to the operator's `[h0, w0, h1, w1, ...]`.

    Raises:
        TypeError: `spatial_shapes` is a tensor, which would have to be read from the device.
        ValueError: an entry is not a pair.
    """
    if isinstance(spatial_shapes, Tensor):
        raise TypeError(
            "spatial_shapes must be a list of (height, width) integers, got a Tensor; pass "
            "spatial_shapes.tolist(), or better the integers it was made from"
        )
    if any(not isinstance(pair, (tuple, list)) or len(pair) != 2 for pair in spatial_shapes):
        raise ValueError(f"spatial_shapes must hold (height, width) pairs, got {spatial_shapes}")
    return [size for pair in spatial_shapes for size in pair]


def split_levels(spatial_shapes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yields (first token, height, width) of each level."""
    first = 0
    for height, width in zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True):
        yield first, height, width
        first += height * width


def _check_kinds(op: str, **tensors: Tensor) -> None:
    """Checks that all tensors are dense and on one device."""
    if len({tensor.device for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(f"{op}: all tensors must be on one device, got {found}")
    layouts = tuple(tensor.layout for tensor in tensors.values())
    if any(layout != torch.strided for layout in layouts):
        raise ValueError(f"{op}: all tensors must be dense, got layouts {layouts}")


def _check_dtype(op: str, name: str, tensor: Tensor, rule: Argument, value: torch.dtype) -> None:
    expected = rule.dtype(value)
    if tensor.dtype != expected:
        raise TypeError(
            f"{op}: {name} must be {expected} (dtype of value: {value}), got {tensor.dtype}"
        )


def _check_shape(op: str, name: str, tensor: Tensor, rule: Argument, sizes: dict[str, int]) -> None:
    """Compares with the sizes known so far, and adds those of new axes."""
    known = dict(sizes)

    def fits(axis: str, size: int) -> bool:
        one, _, axis = axis.rpartition("|")
        if one and size == 1:
            return True
        return size == sizes.setdefault(axis, size) and (size > 0 or axis in _MAY_BE_EMPTY)

    def wanted(axis: str) -> str:
        one, _, axis = axis.rpartition("|")
        least = axis if axis in _MAY_BE_EMPTY else f"{axis} >= 1"
        size = f"{axis}={known[axis]}" if axis in known else least
        return f"1 or {size}" if one else size

    axes, shape = rule.axes.split(), tuple(tensor.shape)
    if len(axes) != len(shape) or not all(map(fits, axes, shape)):
        expected = ", ".join(map(wanted, axes))
        raise ValueError(f"{op}: {name} must have shape ({expected}), got {shape}")


def _check_levels(op: str, spatial_shapes: Sequence[int], tokens: int) -> None:
    if len(spatial_shapes) == 0 or len(spatial_shapes) % 2 != 0:
        raise ValueError(
            f"{op}: spatial_shapes must be (h0, w0, h1, w1, ...), got {spatial_shapes}"
        )
    if any(size <= 0 for size in spatial_shapes):
        raise ValueError(
            f"{op}: heights and widths must be positive, got spatial_shapes {spatial_shapes}"
        )
    if sum(height * width for _, height, width in split_levels(spatial_shapes)) != tokens:
        raise ValueError(
            f"{op}: value must have one token per cell of spatial_shapes {spatial_shapes}, "
            f"got {tokens} tokens"
        )


def check_arguments(
    op: str,
    rules: Mapping[str, Argument],
    value: Tensor,
    spatial_shapes: Sequence[int],
    *taps: Tensor,
) -> dict[str, int]:
    """Checks a call `op(value, spatial_shapes, *taps)`, whose shapes may be symbolic.

    Args:
        op: name of the operator, for error messages.
        rules: names and rules of `taps`.
        value: `(batch, tokens, heads, head_dim)`.
        spatial_shapes: `(h0, w0, h1, w1, ...)`.
        taps: the other tensors.

    Returns:
        The size of each axis, and of `channels`, which is that of all heads together.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape, device or layout.
    """
    tensors = dict(zip(rules, taps, strict=True))
    _check_kinds(op, value=value, **tensors)
    if value.dtype not in _VALUE_DTYPES:
        raise TypeError(
            f"{op}: value must be float32, float64, float16 or bfloat16, got {value.dtype}"
        )
    for name, tensor in tensors.items():
        _check_dtype(op, name, tensor, rules[name], value.dtype)
    sizes = {"levels": len(spatial_shapes) // 2, "xy": 2}
    _check_shape(op, "value", value, _VALUE, sizes)
    _check_levels(op, spatial_shapes, sizes["tokens"])
    # The tensor with the most axes has all of them. It comes first: the others must agree with it.
    for name in sorted(rules, key=lambda name: -len(rules[name].axes.split())):
        _check_shape(op, name, tensors[name], rules[name], sizes)
    return sizes | {"channels": sizes["heads"] * sizes["head_dim"]}


def check_grad_output(op: str, grad_output: Tensor, value: Tensor, sizes: dict[str, int]) -> None:
    """Checks the output gradient of a call that `check_arguments` has accepted.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape, device or layout.
    """
    op = f"{op}_backward"
    _check_kinds(op, grad_output=grad_output, value=value)
    _check_dtype(op, "grad_output", grad_output, _GRAD_OUTPUT, value.dtype)
    _check_shape(op, "grad_output", grad_output, _GRAD_OUTPUT, sizes)
