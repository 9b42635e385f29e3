"""What :func:`vitadapter.layers.ms_deform_attn` accepts, as ``check_inputs.h`` has it for C++."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = [
    "check_grad_output",
    "check_inputs",
    "coordinate_dtype",
    "flatten_spatial_shapes",
    "split_levels",
    "upcast_half",
]

_VALUE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def coordinate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of locations, weights and sums: float64 for a float64 value, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def flatten_spatial_shapes(spatial_shapes: Sequence[tuple[int, int]]) -> list[int]:
    """``[(h0, w0), (h1, w1), ...]`` as the operator takes it, ``[h0, w0, h1, w1, ...]``.

    Raises:
        TypeError: if ``spatial_shapes`` is a tensor; reading it would wait for the device.
        ValueError: if an entry is not a pair.
    """
    if isinstance(spatial_shapes, Tensor):
        raise TypeError(
            "spatial_shapes must be a list of (height, width) integers, got a Tensor; pass "
            "spatial_shapes.tolist(), or better the integers it was made from"
        )
    if any(not isinstance(pair, (tuple, list)) or len(pair) != 2 for pair in spatial_shapes):
        raise ValueError(f"spatial_shapes must hold (height, width) pairs, got {spatial_shapes}")
    return [size for pair in spatial_shapes for size in pair]


def upcast_half(tensor: Tensor, value_dtype: torch.dtype) -> Tensor:
    """Bring locations or weights of a half type to the dtype that goes with ``value_dtype``."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.to(coordinate_dtype(value_dtype))
    return tensor


def split_levels(spatial_shapes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (first token, height, width) of each level."""
    first = 0
    for height, width in zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True):
        yield first, height, width
        first += height * width


def _check_kinds(value: Tensor, locations: Tensor, weights: Tensor) -> None:
    if not value.device == locations.device == weights.device:
        raise ValueError(
            f"ms_deform_attn: all tensors must be on one device, got value on {value.device}, "
            f"sampling_locations on {locations.device}, attention_weights on {weights.device}"
        )
    # Not in C++: PyTorch calls the dense kernels for dense tensors only.
    layouts = (value.layout, locations.layout, weights.layout)
    if any(layout != torch.strided for layout in layouts):
        raise ValueError(f"ms_deform_attn: all tensors must be dense, got layouts {layouts}")
    if value.dtype not in _VALUE_DTYPES:
        raise TypeError(
            "ms_deform_attn: value must be float32, float64, float16 or bfloat16, "
            f"got {value.dtype}"
        )
    expected = coordinate_dtype(value.dtype)
    if not locations.dtype == weights.dtype == expected:
        raise TypeError(
            f"ms_deform_attn: sampling_locations and attention_weights must be {expected} for a "
            f"value of {value.dtype}, got {locations.dtype} and {weights.dtype}"
        )


def _check_levels(spatial_shapes: Sequence[int], tokens: int) -> None:
    if len(spatial_shapes) == 0 or len(spatial_shapes) % 2 != 0:
        raise ValueError(
            f"ms_deform_attn: spatial_shapes must be (h0, w0, h1, w1, ...), got {spatial_shapes}"
        )
    if any(size <= 0 for size in spatial_shapes):
        raise ValueError(
            "ms_deform_attn: heights and widths must be positive, got spatial_shapes "
            f"{spatial_shapes}"
        )
    if sum(height * width for _, height, width in split_levels(spatial_shapes)) != tokens:
        raise ValueError(
            "ms_deform_attn: value must have one token per cell of spatial_shapes "
            f"{spatial_shapes}, got {tokens} tokens"
        )


def check_inputs(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> None:
    """Apply the rules of ``kernels/ms_deform_attn/check_inputs.h``, also to symbolic shapes.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape, device or layout.
    """
    _check_kinds(value, locations, weights)
    if value.dim() != 4 or value.shape[2] == 0 or value.shape[3] == 0:
        raise ValueError(
            "ms_deform_attn: value must have shape (batch, tokens, heads, head_dim) with at least "
            f"one head and channel, got {tuple(value.shape)}"
        )
    _check_levels(spatial_shapes, value.shape[1])
    batch, _, heads, _ = value.shape
    levels = len(spatial_shapes) // 2
    shape = tuple(locations.shape)
    if (
        len(shape) != 6
        or (shape[0], shape[2], shape[3], shape[5]) != (batch, heads, levels, 2)
        or shape[4] == 0
    ):
        raise ValueError(
            f"ms_deform_attn: sampling_locations must have shape (batch={batch}, queries, "
            f"heads={heads}, levels={levels}, points >= 1, 2), got {shape}"
        )
    if tuple(weights.shape) != shape[:5]:
        raise ValueError(
            "ms_deform_attn: attention_weights must have the shape of sampling_locations without "
            f"its last axis, {shape[:5]}, got {tuple(weights.shape)}"
        )


def check_grad_output(grad_output: Tensor, value: Tensor, locations: Tensor) -> None:
    """Apply the rules of ``check_inputs.h`` to the gradient of the output.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape or device.
    """
    if grad_output.device != value.device:
        raise ValueError(
            "ms_deform_attn_backward: all tensors must be on one device, got grad_output on "
            f"{grad_output.device}, value on {value.device}"
        )
    if grad_output.dtype != value.dtype:
        raise TypeError(
            "ms_deform_attn_backward: grad_output must have the dtype of value, "
            f"{value.dtype}, got {grad_output.dtype}"
        )
    expected = (value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    if tuple(grad_output.shape) != expected:
        raise ValueError(
            f"ms_deform_attn_backward: grad_output must have shape {expected}, "
            f"got {tuple(grad_output.shape)}"
        )
