"""What the deformable-attention operators accept, as ``check_inputs.h`` has it for C++."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = [
    "check_fused_inputs",
    "check_grad_output",
    "check_inputs",
    "coordinate_dtype",
    "flatten_spatial_shapes",
    "split_levels",
    "upcast_half",
]

# Kernels number the tokens of an image in 32 bits.
_MAX_TOKENS = 2**31 - 1
# For heads * head_dim and levels * points, which kernels count in 32 bits.
_MOST_PER_QUERY = 2**30
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


def _check_kinds(op: str, **tensors: Tensor) -> None:
    """One device and no sparse tensor; the first one, ``value``, has a dtype that kernels know."""
    value = tensors["value"]
    if any(tensor.device != value.device for tensor in tensors.values()):
        found = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(f"{op}: all tensors must be on one device, got {found}")
    # Not in C++: PyTorch calls the dense kernels for dense tensors only.
    layouts = tuple(tensor.layout for tensor in tensors.values())
    if any(layout != torch.strided for layout in layouts):
        raise ValueError(f"{op}: all tensors must be dense, got layouts {layouts}")
    if value.dtype not in _VALUE_DTYPES:
        raise TypeError(
            f"{op}: value must be float32, float64, float16 or bfloat16, got {value.dtype}"
        )


def _check_value(op: str, value: Tensor, spatial_shapes: Sequence[int]) -> None:
    if value.dim() != 4 or value.shape[2] == 0 or value.shape[3] == 0:
        raise ValueError(
            f"{op}: value must have shape (batch, tokens, heads, head_dim) with at least one head "
            f"and channel, got {tuple(value.shape)}"
        )
    if value.shape[2] * value.shape[3] > _MOST_PER_QUERY:
        raise ValueError(
            f"{op}: value must have at most {_MOST_PER_QUERY} channels in all its heads, "
            f"got {tuple(value.shape)}"
        )
    _check_levels(op, spatial_shapes, value.shape[1])


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
    if tokens > _MAX_TOKENS:
        raise ValueError(f"{op}: value must have at most {_MAX_TOKENS} tokens, got {tokens}")


def _check_taps(
    op: str, name: str, taps: Tensor, value: Tensor, spatial_shapes: Sequence[int]
) -> None:
    """Locations or offsets: ``(batch, queries, heads, levels, points, 2)``."""
    batch, _, heads, _ = value.shape
    levels = len(spatial_shapes) // 2
    shape = tuple(taps.shape)
    if (
        len(shape) != 6
        or (shape[0], shape[2], shape[3], shape[5]) != (batch, heads, levels, 2)
        or shape[4] == 0
    ):
        raise ValueError(
            f"{op}: {name} must have shape (batch={batch}, queries, heads={heads}, "
            f"levels={levels}, points >= 1, 2), got {shape}"
        )
    if levels * shape[4] > _MOST_PER_QUERY:
        raise ValueError(
            f"{op}: {name} must have at most {_MOST_PER_QUERY} points in all levels, got {shape}"
        )


def _check_per_tap(op: str, name: str, tensor: Tensor, taps_name: str, taps: Tensor) -> None:
    """Weights or logits: one for each tap."""
    shape = tuple(taps.shape[:5])
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{op}: {name} must have the shape of {taps_name} without its last axis, {shape}, "
            f"got {tuple(tensor.shape)}"
        )


def check_inputs(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> None:
    """Apply the rules of ``kernels/ms_deform_attn/check_inputs.h``, also to symbolic shapes.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape, device or layout.
    """
    op = "ms_deform_attn"
    _check_kinds(op, value=value, sampling_locations=locations, attention_weights=weights)
    expected = coordinate_dtype(value.dtype)
    if not locations.dtype == weights.dtype == expected:
        raise TypeError(
            f"{op}: sampling_locations and attention_weights must be {expected} for a value of "
            f"{value.dtype}, got {locations.dtype} and {weights.dtype}"
        )
    _check_value(op, value, spatial_shapes)
    _check_taps(op, "sampling_locations", locations, value, spatial_shapes)
    _check_per_tap(op, "attention_weights", weights, "sampling_locations", locations)


def check_fused_inputs(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> None:
    """Apply the rules that ``check_inputs.h`` has for the fused operator.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape, device or layout.
    """
    op = "ms_deform_attn_fused"
    _check_kinds(
        op,
        value=value,
        reference_points=reference_points,
        sampling_offsets=offsets,
        attention_logits=logits,
    )
    if not offsets.dtype == logits.dtype == value.dtype:
        raise TypeError(
            f"{op}: sampling_offsets and attention_logits must have the dtype of value, "
            f"{value.dtype}, got {offsets.dtype} and {logits.dtype}"
        )
    expected = coordinate_dtype(value.dtype)
    if reference_points.dtype != expected:
        raise TypeError(
            f"{op}: reference_points must be {expected} for a value of {value.dtype}, "
            f"got {reference_points.dtype}"
        )
    _check_value(op, value, spatial_shapes)
    _check_taps(op, "sampling_offsets", offsets, value, spatial_shapes)
    _check_per_tap(op, "attention_logits", logits, "sampling_offsets", offsets)
    batch, queries, _, levels, _, _ = offsets.shape
    shape = tuple(reference_points.shape)
    if (
        len(shape) != 4
        or shape[0] not in (1, batch)
        or shape[1] != queries
        or shape[2] not in (1, levels)
        or shape[3] != 2
    ):
        raise ValueError(
            f"{op}: reference_points must have shape (1 or batch={batch}, queries={queries}, "
            f"1 or levels={levels}, 2), got {shape}"
        )


def check_grad_output(op: str, grad_output: Tensor, value: Tensor, queries: int) -> None:
    """Apply the rules of ``check_inputs.h`` to the gradient of the output.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape or device.
    """
    if grad_output.device != value.device:
        raise ValueError(
            f"{op}_backward: all tensors must be on one device, got grad_output on "
            f"{grad_output.device}, value on {value.device}"
        )
    if grad_output.dtype != value.dtype:
        raise TypeError(
            f"{op}_backward: grad_output must have the dtype of value, {value.dtype}, "
            f"got {grad_output.dtype}"
        )
    expected = (value.shape[0], queries, value.shape[2] * value.shape[3])
    if tuple(grad_output.shape) != expected:
        raise ValueError(
            f"{op}_backward: grad_output must have shape {expected}, got {tuple(grad_output.shape)}"
        )
