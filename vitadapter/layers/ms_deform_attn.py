"""Multi-scale deformable attention as an operator over given locations and weights.

The operator's schema and CPU kernel are compiled (``kernels/ms_deform_attn``). What PyTorch must
know besides (tracing, autograd, autocast, and an implementation for every other device) is
registered here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vitadapter.layers.extension import warn_missing_extension
from vitadapter.layers.library import EXTENSION_LOADED, LIBRARY, define_unless_compiled
from vitadapter.layers.ms_deform_attn_checks import (
    check_grad_output,
    check_inputs,
    flatten_spatial_shapes,
    upcast_half,
)
from vitadapter.layers.ms_deform_attn_reference import backward_reference, forward_reference

__all__ = ["ms_deform_attn"]

define_unless_compiled(
    "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
    "Tensor attention_weights) -> Tensor"
)
define_unless_compiled(
    "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
    "Tensor sampling_locations, Tensor attention_weights) -> (Tensor, Tensor, Tensor)"
)


def _forward_any_device(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    if not EXTENSION_LOADED:
        warn_missing_extension()
    return forward_reference(value, spatial_shapes, locations, weights)


LIBRARY.impl("ms_deform_attn", _forward_any_device, "CompositeExplicitAutograd")
LIBRARY.impl("ms_deform_attn_backward", backward_reference, "CompositeExplicitAutograd")


@torch.library.register_fake("vitadapter::ms_deform_attn", lib=LIBRARY)
def _forward_fake(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    check_inputs(value, spatial_shapes, locations, weights)
    batch, _, heads, head_dim = value.shape
    return value.new_empty(batch, locations.shape[1], heads * head_dim)


@torch.library.register_fake("vitadapter::ms_deform_attn_backward", lib=LIBRARY)
def _backward_fake(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    check_inputs(value, spatial_shapes, locations, weights)
    check_grad_output("ms_deform_attn", grad_output, value, locations.shape[1])
    return tuple(tensor.new_empty(tensor.shape) for tensor in (value, locations, weights))


def _save_inputs(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, Sequence[int], Tensor, Tensor],
    output: Tensor,
) -> None:
    value, ctx.spatial_shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(
    ctx: torch.autograd.function.FunctionCtx, grad_output: Tensor
) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.vitadapter.ms_deform_attn_backward(
        grad_output, value, ctx.spatial_shapes, locations, weights
    )
    return grad_value, None, grad_locations, grad_weights


def _refuse_double_backward(
    ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor
) -> tuple[None, ...]:
    raise NotImplementedError(
        "ms_deform_attn has no second derivative: gradient penalties and Hessians cannot pass "
        "through it"
    )


torch.library.register_autograd(
    "vitadapter::ms_deform_attn", _backward, setup_context=_save_inputs, lib=LIBRARY
)
torch.library.register_autograd(
    "vitadapter::ms_deform_attn_backward", _refuse_double_backward, lib=LIBRARY
)


def _autocast(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """Under autocast ``value`` keeps its dtype; coordinates never run in half precision."""
    with torch.autocast(value.device.type, enabled=False):
        return torch.ops.vitadapter.ms_deform_attn(
            value,
            spatial_shapes,
            upcast_half(locations, value.dtype),
            upcast_half(weights, value.dtype),
        )


for _key in ("AutocastCPU", "AutocastCUDA"):
    LIBRARY.impl("ms_deform_attn", _autocast, _key)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sum bilinear samples of several feature maps, weighted (Deformable DETR, equation 3).

    A sample outside its map, or at a NaN or infinite location, adds nothing whatever its weight,
    NaN included, and gets no gradient.
    Locations are never handled in half precision: at a width of 152 it would shift them by up to
    0.07 pixels.

    Args:
        value: Feature maps as tokens, one after the other and row by row,
            ``(B, S, heads, head_dim)``, in float32, float64, float16 or bfloat16 (sums of the half
            types are float32).
        spatial_shapes: (height, width) of each map; ``S`` is the sum of their products.
        sampling_locations: ``(B, Q, heads, levels, points, 2)`` as (x, y), where (0, 0) and (1, 1)
            are the outer corners of a map. float32, or float64 if ``value`` is; half types are
            upcast.
        attention_weights: ``(B, Q, heads, levels, points)``, dtype as ``sampling_locations``.

    Returns:
        ``(B, Q, heads * head_dim)`` in the dtype of ``value``.

    Raises:
        TypeError: if a dtype is wrong.
        ValueError: if shapes or devices do not go together.
    """
    dtype = value.dtype
    return torch.ops.vitadapter.ms_deform_attn(
        value,
        flatten_spatial_shapes(spatial_shapes),
        upcast_half(sampling_locations, dtype),
        upcast_half(attention_weights, dtype),
    )
