"""Deformable attention from offsets and logits in plain PyTorch, with its gradients written out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vitadapter.layers.ms_deform_attn_checks import (
    check_fused_inputs,
    check_grad_output,
    coordinate_dtype,
    flatten_spatial_shapes,
    upcast_half,
)
from vitadapter.layers.ms_deform_attn_reference import backward_reference, forward_reference

__all__ = ["fused_backward_reference", "fused_forward_reference", "ms_deform_attn_fused_reference"]


def _map_sizes(spatial_shapes: Sequence[int], like: Tensor) -> Tensor:
    """(width, height) of each level, ``(levels, 1, 2)``.

    Filled on the device rather than copied there: a copy would wait for it, and would turn sizes
    that ``torch.export`` keeps symbolic into constants.
    """
    pairs = zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True)
    sizes = [like.new_full((1,), size) for height, width in pairs for size in (width, height)]
    return torch.cat(sizes).reshape(-1, 1, 2)


def _sampling_locations(reference_points: Tensor, offsets: Tensor, sizes: Tensor) -> Tensor:
    """``(B, Q, heads, levels, points, 2)``, normalised (x, y)."""
    offsets = offsets.to(reference_points.dtype)
    # Summed in pixels, as the kernels do, so that huge values cancel or overflow alike.
    return (reference_points[:, :, None, :, None] * sizes + offsets) / sizes


def _attention_weights(logits: Tensor) -> Tensor:
    weights = logits.flatten(3).softmax(-1, dtype=coordinate_dtype(logits.dtype))
    return weights.reshape(logits.shape)


def fused_forward_reference(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """The operator ``vitadapter::ms_deform_attn_fused`` on any device, differentiable by autograd.

    Args:
        value: ``(B, S, heads, head_dim)``.
        spatial_shapes: ``(h0, w0, h1, w1, ...)``.
        reference_points: ``(B or 1, Q, levels or 1, 2)``, normalised (x, y).
        offsets: ``(B, Q, heads, levels, points, 2)`` in pixels of the level.
        logits: ``(B, Q, heads, levels, points)``.

    Returns:
        ``(B, Q, heads * head_dim)`` in the dtype of ``value``.
    """
    check_fused_inputs(value, spatial_shapes, reference_points, offsets, logits)
    sizes = _map_sizes(spatial_shapes, reference_points)
    locations = _sampling_locations(reference_points, offsets, sizes)
    return forward_reference(value, spatial_shapes, locations, _attention_weights(logits))


def fused_backward_reference(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ``vitadapter::ms_deform_attn_fused_backward`` on any device.

    Args:
        grad_output: ``(B, Q, heads * head_dim)``.
        value, spatial_shapes, reference_points, offsets, logits: as for
            :func:`fused_forward_reference`.

    Returns:
        Gradients of ``value``, ``reference_points``, ``offsets`` and ``logits``, each contiguous
        and in the dtype of its tensor.
    """
    check_fused_inputs(value, spatial_shapes, reference_points, offsets, logits)
    check_grad_output("ms_deform_attn_fused", grad_output, value, offsets.shape[1])
    sizes = _map_sizes(spatial_shapes, reference_points)
    locations = _sampling_locations(reference_points, offsets, sizes)
    weights = _attention_weights(logits)
    grad_value, grad_locations, grad_weights = backward_reference(
        grad_output, value, spatial_shapes, locations, weights
    )
    grad_offsets = grad_locations / sizes
    grad_reference = grad_locations.sum((2, 4))  # (B, Q, levels, 2)
    for axis in (0, 2):
        if reference_points.shape[axis] == 1:
            grad_reference = grad_reference.sum(axis, keepdim=True)
    along = weights * grad_weights
    grad_logits = along - weights * along.sum((3, 4), keepdim=True)
    return (
        grad_value,
        grad_reference.contiguous(),
        grad_offsets.to(offsets.dtype),
        grad_logits.to(logits.dtype),
    )


def ms_deform_attn_fused_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """:func:`vitadapter.layers.ms_deform_attn_fused` by ``grid_sample``; same arguments."""
    return fused_forward_reference(
        value,
        flatten_spatial_shapes(spatial_shapes),
        upcast_half(reference_points, value.dtype),
        sampling_offsets,
        attention_logits,
    )
