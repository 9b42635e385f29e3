"""Multi-scale deformable attention in plain PyTorch, with its gradients written out.

It is used on devices without a compiled kernel, and the kernels are tested against it. The
arguments are those of the operators in `vitadapter.ops.ms_deform_attn`, already checked;
`spatial_shapes` is `(h0, w0, h1, w1, ...)`. Each gradient is contiguous and has the dtype of its
tensor. Gradients are written out because operators run below autograd.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vitadapter.ops.arguments import coordinate_dtype, split_levels

__all__ = ["sample", "sample_backward", "sample_fused", "sample_fused_backward"]

# The arguments of `grid_sample`: "bilinear", "zeros", and corners that are not aligned.
_GRID_SAMPLE = (0, 0, False)


def _touches_a_pixel(locations: Tensor, spatial_shapes: Sequence[int]) -> Tensor:
    """Whether each tap `(B, Q, heads, levels, points)` lies within a pixel of a pixel's centre."""
    inside = []
    for level, (_, height, width) in enumerate(split_levels(spatial_shapes)):
        x, y = locations[:, :, :, level].unbind(-1)
        x, y = x * width - 0.5, y * height - 0.5
        # As in the kernels, (-1, -1) is included because of its gradient, and NaN is not.
        inside.append((x >= -1) & (x < width) & (y >= -1) & (y < height))
    return torch.stack(inside, 3)


def _levels(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor, inside: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields for each level its map, the coordinates for `grid_sample`, and the weights.

    All taps that touch no pixel are moved to one place outside the map: the kernels of
    `grid_sample` convert coordinates to integers, which is undefined for NaN and huge values.

    Yields:
        `(B * heads, head_dim, h, w)`, `(B * heads, Q, points, 2)`, and
        `(B * heads, 1, Q, points)`, which is 0 where a tap touches no pixel.
    """
    batch, _, heads, head_dim = value.shape
    tokens = value.to(weights.dtype).permute(0, 2, 3, 1)  # (B, heads, head_dim, S)
    outside = -1.0
    locations = locations.nan_to_num(outside, outside, outside).clamp(outside, 2.0)
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    weights = weights.where(inside, 0).permute(3, 0, 2, 1, 4).flatten(1, 2)
    for level, (first, height, width) in enumerate(split_levels(spatial_shapes)):
        feature_map = tokens[..., first : first + height * width]
        feature_map = feature_map.reshape(batch * heads, head_dim, height, width)
        yield feature_map, grids[level], weights[level, :, None]


def sample(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """Computes `ms_deform_attn`, differentiable by autograd."""
    batch, _, heads, head_dim = value.shape
    queries = locations.shape[1]
    inside = _touches_a_pixel(locations, spatial_shapes)
    output = weights.new_zeros(batch * heads, head_dim, queries)
    for feature_map, grid, level_weights in _levels(
        value, spatial_shapes, locations, weights, inside
    ):
        # (B * heads, head_dim, Q, points)
        sampled = F.grid_sample(feature_map, grid, align_corners=False)
        output = output + (sampled * level_weights).sum(-1)
    output = output.reshape(batch, heads * head_dim, queries).transpose(1, 2)
    return output.to(value.dtype).contiguous()


def sample_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of `value`, `locations` and `weights`."""
    batch, _, heads, head_dim = value.shape
    grad = grad_output.to(weights.dtype).transpose(1, 2)
    grad = grad.reshape(batch * heads, head_dim, locations.shape[1], 1)
    inside = _touches_a_pixel(locations, spatial_shapes)
    grad_maps, grad_grids, grad_weights = [], [], []
    for feature_map, grid, level_weights in _levels(
        value, spatial_shapes, locations, weights, inside
    ):
        sampled = F.grid_sample(feature_map, grid, align_corners=False)
        grad_weights.append((sampled * grad).sum(1))  # (B * heads, Q, points)
        grad_map, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad * level_weights, feature_map, grid, *_GRID_SAMPLE, [True, True]
        )
        grad_maps.append(grad_map.flatten(2))
        grad_grids.append(2 * grad_grid)
    grad_value = torch.cat(grad_maps, 2).unflatten(0, (batch, heads))  # (B, heads, head_dim, S)
    grad_locations = torch.stack(grad_grids).unflatten(1, (batch, heads))
    grad_weight = torch.stack(grad_weights).unflatten(1, (batch, heads))
    return (
        grad_value.permute(0, 3, 1, 2).to(value.dtype).contiguous(),
        grad_locations.permute(1, 3, 2, 0, 4, 5).contiguous(),
        grad_weight.permute(1, 3, 2, 0, 4).where(inside, 0).contiguous(),
    )


def _locations_and_weights(
    spatial_shapes: Sequence[int], reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns normalised locations, weights, and (width, height) of each level, `(levels, 1, 2)`.

    Sizes are filled in on the device rather than copied there: a copy would wait for the device,
    and turn sizes that `torch.export` keeps symbolic into constants.
    """
    sizes = torch.cat(
        [
            reference_points.new_full((1,), size)
            for _, height, width in split_levels(spatial_shapes)
            for size in (width, height)
        ]
    ).reshape(-1, 1, 2)
    offsets = offsets.to(reference_points.dtype)
    # Summed in pixels, as in the kernels, so that huge values cancel or overflow in the same way.
    locations = (reference_points[:, :, None, :, None] * sizes + offsets) / sizes
    weights = logits.flatten(3).softmax(-1, dtype=coordinate_dtype(logits.dtype))
    return locations, weights.reshape(logits.shape), sizes


def sample_fused(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Computes `ms_deform_attn_fused`, differentiable by autograd."""
    taps = _locations_and_weights(spatial_shapes, reference_points, offsets, logits)
    return sample(value, spatial_shapes, *taps[:2])


def sample_fused_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes the gradients of `value`, `reference_points`, `offsets` and `logits`."""
    locations, weights, sizes = _locations_and_weights(
        spatial_shapes, reference_points, offsets, logits
    )
    grad_value, grad_locations, grad_weights = sample_backward(
        grad_output, value, spatial_shapes, locations, weights
    )
    grad_offsets = (grad_locations / sizes).to(offsets.dtype)
    grad_reference = grad_locations.sum((2, 4))  # (B, Q, levels, 2)
    grad_reference = grad_reference.sum_to_size(reference_points.shape)
    along = weights * grad_weights
    grad_logits = (along - weights * along.sum((3, 4), keepdim=True)).to(logits.dtype)
    return grad_value, grad_reference.contiguous(), grad_offsets, grad_logits
