"""Multi-scale deformable attention in plain PyTorch.

Serves every device without a compiled kernel, and is what the kernels are tested against. The
attention itself is that of Deformable DETR (https://arxiv.org/abs/2010.04159, equation 3).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vitadapter.layers.ms_deform_attn_checks import (
    check_grad_output,
    check_inputs,
    coordinate_dtype,
    flatten_spatial_shapes,
    split_levels,
    upcast_half,
)

__all__ = ["backward_reference", "forward_reference", "ms_deform_attn_reference"]


def _feature_maps(value: Tensor, spatial_shapes: Sequence[int]) -> list[Tensor]:
    """Cut ``(B, S, heads, head_dim)`` into maps ``(B * heads, head_dim, h, w)``."""
    batch, _, heads, head_dim = value.shape
    tokens = value.to(coordinate_dtype(value.dtype)).permute(0, 2, 3, 1)  # (B, heads, head_dim, S)
    return [
        tokens[..., first : first + height * width].reshape(batch * heads, head_dim, height, width)
        for first, height, width in split_levels(spatial_shapes)
    ]


def _sampling_grids(locations: Tensor) -> list[Tensor]:
    """Per level the coordinates that ``grid_sample`` takes, ``(B * heads, Q, points, 2)``.

    Whatever lies so far outside that no pixel is touched is moved to one such place: the kernels
    of ``grid_sample`` convert coordinates to integers, which is undefined for NaN and huge values.
    """
    batch, queries, heads, levels, points, _ = locations.shape
    outside = -1.0
    locations = locations.nan_to_num(outside, outside, outside).clamp(outside, 2.0)
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5)
    return list(grids.reshape(levels, batch * heads, queries, points, 2))


def _level_weights(weights: Tensor, inside: Tensor) -> Tensor:
    """The weights as ``(levels, B * heads, 1, Q, points)``, zero where a tap touches no pixel."""
    batch, queries, heads, levels, points = weights.shape
    weights = weights.where(inside, 0).permute(3, 0, 2, 1, 4)
    return weights.reshape(levels, batch * heads, 1, queries, points)


def _touches_a_pixel(locations: Tensor, spatial_shapes: Sequence[int]) -> Tensor:
    """Which taps ``(B, Q, heads, levels, points)`` lie within a pixel of a pixel's centre."""
    inside = []
    for level, (_, height, width) in enumerate(split_levels(spatial_shapes)):
        x, y = locations[:, :, :, level].unbind(-1)
        x, y = x * width - 0.5, y * height - 0.5
        # As the kernels have it, where (-1, -1) still counts for its gradient. NaN does not.
        inside.append((x >= -1) & (x < width) & (y >= -1) & (y < height))
    return torch.stack(inside, 3)


def forward_reference(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """The operator ``vitadapter::ms_deform_attn`` on any device, differentiable by autograd.

    Args:
        value: ``(B, S, heads, head_dim)``.
        spatial_shapes: ``(h0, w0, h1, w1, ...)``.
        locations: ``(B, Q, heads, levels, points, 2)``, normalised (x, y).
        weights: ``(B, Q, heads, levels, points)``.

    Returns:
        ``(B, Q, heads * head_dim)`` in the dtype of ``value``.
    """
    check_inputs(value, spatial_shapes, locations, weights)
    batch, _, heads, head_dim = value.shape
    queries = locations.shape[1]
    level_weights = _level_weights(weights, _touches_a_pixel(locations, spatial_shapes))
    output = weights.new_zeros(batch * heads, head_dim, queries)
    for level, (feature_map, grid) in enumerate(
        zip(_feature_maps(value, spatial_shapes), _sampling_grids(locations), strict=True)
    ):
        # (B * heads, head_dim, Q, points)
        sampled = F.grid_sample(feature_map, grid, "bilinear", "zeros", align_corners=False)
        output = output + (sampled * level_weights[level]).sum(-1)
    output = output.reshape(batch, heads * head_dim, queries).transpose(1, 2)
    return output.to(value.dtype).contiguous()


def backward_reference(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ``vitadapter::ms_deform_attn_backward`` on any device.

    Written out, since operators run below autograd.

    Args:
        grad_output: ``(B, Q, heads * head_dim)``.
        value, spatial_shapes, locations, weights: as for :func:`forward_reference`.

    Returns:
        Gradients of ``value``, ``locations`` and ``weights``, each contiguous.
    """
    check_inputs(value, spatial_shapes, locations, weights)
    check_grad_output("ms_deform_attn", grad_output, value, locations.shape[1])
    batch, _, heads, head_dim = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    grad = grad_output.to(weights.dtype).transpose(1, 2)
    grad = grad.reshape(batch * heads, head_dim, queries, 1)
    inside = _touches_a_pixel(locations, spatial_shapes)
    level_weights = _level_weights(weights, inside)
    grad_maps, grad_grids, grad_weights = [], [], []
    for level, (feature_map, grid) in enumerate(
        zip(_feature_maps(value, spatial_shapes), _sampling_grids(locations), strict=True)
    ):
        sampled = F.grid_sample(feature_map, grid, "bilinear", "zeros", align_corners=False)
        grad_weights.append((sampled * grad).sum(1))  # (B * heads, Q, points)
        grad_map, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad * level_weights[level], feature_map, grid, 0, 0, False, [True, True]
        )
        grad_maps.append(grad_map.flatten(2))
        grad_grids.append(2 * grad_grid)

    grad_value = torch.cat(grad_maps, 2).reshape(batch, heads, head_dim, value.shape[1])
    grad_locations = torch.stack(grad_grids).reshape(levels, batch, heads, queries, points, 2)
    grad_weight = torch.stack(grad_weights).reshape(levels, batch, heads, queries, points)
    return (
        grad_value.permute(0, 3, 1, 2).to(value.dtype).contiguous(),
        grad_locations.permute(1, 3, 2, 0, 4, 5).contiguous(),
        grad_weight.permute(1, 3, 2, 0, 4).where(inside, 0).contiguous(),
    )


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """:func:`vitadapter.layers.ms_deform_attn` by ``grid_sample``, with the same arguments."""
    dtype = value.dtype
    return forward_reference(
        value,
        flatten_spatial_shapes(spatial_shapes),
        upcast_half(sampling_locations, dtype),
        upcast_half(attention_weights, dtype),
    )
