"""Multi-scale deformable attention as an operator over raw offsets and logits.

Softmax and location arithmetic happen inside the kernels, and once more in the backward pass, so
that neither sampling locations nor attention weights are ever stored.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vitadapter.layers.extension import warn_missing_extension
from vitadapter.layers.library import EXTENSION_LOADED, LIBRARY, define_unless_compiled
from vitadapter.layers.ms_deform_attn_checks import (
    check_fused_inputs,
    check_grad_output,
    coordinate_dtype,
    flatten_spatial_shapes,
    upcast_half,
)
from vitadapter.layers.ms_deform_attn_fused_reference import (
    fused_backward_reference,
    fused_forward_reference,
)

__all__ = ["ms_deform_attn_fused"]

define_unless_compiled(
    "ms_deform_attn_fused(Tensor value, SymInt[] spatial_shapes, Tensor reference_points, "
    "Tensor sampling_offsets, Tensor attention_logits) -> Tensor"
)
define_unless_compiled(
    "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
    "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def _forward_any_device(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    if not EXTENSION_LOADED:
        warn_missing_extension()
    return fused_forward_reference(value, spatial_shapes, reference_points, offsets, logits)


LIBRARY.impl("ms_deform_attn_fused", _forward_any_device, "CompositeExplicitAutograd")
LIBRARY.impl("ms_deform_attn_fused_backward", fused_backward_reference, "CompositeExplicitAutograd")


@torch.library.register_fake("vitadapter::ms_deform_attn_fused", lib=LIBRARY)
def _forward_fake(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    check_fused_inputs(value, spatial_shapes, reference_points, offsets, logits)
    batch, _, heads, head_dim = value.shape
    return value.new_empty(batch, offsets.shape[1], heads * head_dim)


@torch.library.register_fake("vitadapter::ms_deform_attn_fused_backward", lib=LIBRARY)
def _backward_fake(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_fused_inputs(value, spatial_shapes, reference_points, offsets, logits)
    check_grad_output("ms_deform_attn_fused", grad_output, value, offsets.shape[1])
    inputs = (value, reference_points, offsets, logits)
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs)


def _save_inputs(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, Sequence[int], Tensor, Tensor, Tensor],
    output: Tensor,
) -> None:
    value, ctx.spatial_shapes, reference_points, offsets, logits = inputs
    ctx.save_for_backward(value, reference_points, offsets, logits)


def _backward(
    ctx: torch.autograd.function.FunctionCtx, grad_output: Tensor
) -> tuple[Tensor, None, Tensor, Tensor, Tensor]:
    value, *others = ctx.saved_tensors
    grad_value, *grads = torch.ops.vitadapter.ms_deform_attn_fused_backward(
        grad_output, value, ctx.spatial_shapes, *others
    )
    return grad_value, None, *grads


def _refuse_double_backward(
    ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor
) -> tuple[None, ...]:
    raise NotImplementedError(
        "ms_deform_attn_fused has no second derivative: gradient penalties and Hessians cannot "
        "pass through it"
    )


torch.library.register_autograd(
    "vitadapter::ms_deform_attn_fused", _backward, setup_context=_save_inputs, lib=LIBRARY
)
torch.library.register_autograd(
    "vitadapter::ms_deform_attn_fused_backward", _refuse_double_backward, lib=LIBRARY
)


def _autocast(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Under autocast offsets and logits follow ``value``; reference points stay float32."""
    with torch.autocast(value.device.type, enabled=False):
        return torch.ops.vitadapter.ms_deform_attn_fused(
            value,
            spatial_shapes,
            reference_points.to(coordinate_dtype(value.dtype)),
            offsets.to(value.dtype),
            logits.to(value.dtype),
        )


for _key in ("AutocastCPU", "AutocastCUDA"):
    LIBRARY.impl("ms_deform_attn_fused", _autocast, _key)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """:func:`ms_deform_attn` at ``reference + offset / size``, weighted by ``softmax(logits)``.

    Args:
        value: Feature maps as tokens, one after the other and row by row,
            ``(B, S, heads, head_dim)``, in float32, float64, float16 or bfloat16 (coordinates and
            sums of the half types are float32).
        spatial_shapes: (height, width) of each map; ``S`` is the sum of their products.
        reference_points: ``(B or 1, Q, levels or 1, 2)`` as (x, y), where (0, 0) and (1, 1) are
            the outer corners of a map. float32, or float64 if ``value`` is; half types are upcast.
        sampling_offsets: ``(B, Q, heads, levels, points, 2)`` in pixels of the level, dtype of
            ``value``.
        attention_logits: ``(B, Q, heads, levels, points)``, dtype of ``value``; the softmax runs
            over levels and points together.

    Returns:
        ``(B, Q, heads * head_dim)`` in the dtype of ``value``.

    Raises:
        TypeError: if a dtype is wrong.
        ValueError: if shapes or devices do not go together.
    """
    return torch.ops.vitadapter.ms_deform_attn_fused(
        value,
        flatten_spatial_shapes(spatial_shapes),
        upcast_half(reference_points, value.dtype),
        sampling_offsets,
        attention_logits,
    )
