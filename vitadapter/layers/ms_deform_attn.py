"""Multi-scale deformable attention: the operator and the module around it.

The operator's schema and CPU kernel are compiled (``kernels/ms_deform_attn``). What PyTorch must
know besides (tracing, autograd, autocast, and an implementation for every other device) is
registered here.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitadapter.layers.extension import load_extension, warn_missing_extension
from vitadapter.layers.ms_deform_attn_checks import (
    check_grad_output,
    check_inputs,
    coordinate_dtype,
    flatten_spatial_shapes,
    upcast_half,
)
from vitadapter.layers.ms_deform_attn_reference import backward_reference, forward_reference

__all__ = ["MSDeformAttn", "ms_deform_attn"]

_EXTENSION_LOADED = load_extension()
_LIBRARY = torch.library.Library("vitadapter", "FRAGMENT")

if not _EXTENSION_LOADED:
    _LIBRARY.define(
        "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
        "Tensor attention_weights) -> Tensor"
    )
    _LIBRARY.define(
        "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
        "Tensor sampling_locations, Tensor attention_weights) -> (Tensor, Tensor, Tensor)"
    )


def _forward_any_device(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    if not _EXTENSION_LOADED:
        warn_missing_extension()
    return forward_reference(value, spatial_shapes, locations, weights)


_LIBRARY.impl("ms_deform_attn", _forward_any_device, "CompositeExplicitAutograd")
_LIBRARY.impl("ms_deform_attn_backward", backward_reference, "CompositeExplicitAutograd")


@torch.library.register_fake("vitadapter::ms_deform_attn", lib=_LIBRARY)
def _forward_fake(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    check_inputs(value, spatial_shapes, locations, weights)
    batch, _, heads, head_dim = value.shape
    return value.new_empty(batch, locations.shape[1], heads * head_dim)


@torch.library.register_fake("vitadapter::ms_deform_attn_backward", lib=_LIBRARY)
def _backward_fake(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    check_inputs(value, spatial_shapes, locations, weights)
    check_grad_output(grad_output, value, locations)
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
    "vitadapter::ms_deform_attn", _backward, setup_context=_save_inputs, lib=_LIBRARY
)
torch.library.register_autograd(
    "vitadapter::ms_deform_attn_backward", _refuse_double_backward, lib=_LIBRARY
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
    _LIBRARY.impl("ms_deform_attn", _autocast, _key)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sum bilinear samples of several feature maps, weighted (Deformable DETR, equation 3).

    Samples are zero outside the maps, and at NaN or infinite locations, which get no gradient.
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


def _map_sizes(spatial_shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(width, height) of each level, ``(levels, 1, 2)``.

    Filled on the device rather than copied there: a copy would wait for it, and would turn sizes
    that ``torch.export`` keeps symbolic into constants.
    """
    sizes = [
        like.new_full((1,), size) for height, width in spatial_shapes for size in (width, height)
    ]
    return torch.cat(sizes).reshape(-1, 1, 2)


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention with its projections (paper §3.3, Deformable DETR §4.1).

    Parameter names, layouts and initialisation are those of the official release.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        ratio: float = 1.0,
    ) -> None:
        """
        Args:
            embed_dim: Channels C of queries, input features and output.
            num_heads: Attention heads; each learns its own offsets.
            num_levels: Feature maps that are attended to.
            num_points: Sampling points per query, head and level.
            ratio: Width of the values relative to ``embed_dim`` (ViT-Adapter-B and -L use 0.5).

        Raises:
            ValueError: if a size is not positive, or ``num_heads`` does not divide ``embed_dim``
                and the width of the values.
        """
        super().__init__()
        value_dim = int(embed_dim * ratio)
        sizes = (embed_dim, num_heads, num_levels, num_points, value_dim)
        if min(sizes) < 1:
            raise ValueError(
                "embed_dim, num_heads, num_levels, num_points and int(embed_dim * ratio) must be "
                f"at least 1, got {sizes}"
            )
        if embed_dim % num_heads != 0 or value_dim % num_heads != 0:
            raise ValueError(
                "num_heads must divide embed_dim and int(embed_dim * ratio), got "
                f"num_heads={num_heads}, embed_dim={embed_dim}, ratio={ratio}"
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        taps = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, taps * 2)
        self.attention_weights = nn.Linear(embed_dim, taps)
        self.value_proj = nn.Linear(embed_dim, value_dim)
        self.output_proj = nn.Linear(value_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as Deformable DETR: head k looks along angle 2 pi k / heads.

        Its points lie 1, 2, ... pixels away (measured along the longer axis), equally weighted.
        """
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)  # (heads, 2)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * steps[:, None]  # (heads, 1, points, 2)
        offsets = offsets.expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        for zeros in (self.sampling_offsets.weight, *self.attention_weights.parameters()):
            nn.init.zeros_(zeros)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """
        Args:
            query: ``(B, Q, C)``.
            reference_points: ``(B or 1, Q, levels or 1, 2)`` as (x, y) in [0, 1], float32 (or
                float64) also when the module runs in half precision.
            value: Input features of all levels as tokens, ``(B, S, C)``.
            spatial_shapes: (height, width) of each level.

        Returns:
            ``(B, Q, C)``.

        Raises:
            TypeError: if ``reference_points`` are of a half type.
            ValueError: if a shape is wrong.
        """
        self._check_forward(query, reference_points, value, spatial_shapes)
        batch, queries, _ = query.shape
        per_head = (batch, queries, self.num_heads)
        offsets = self.sampling_offsets(query)
        dtype = coordinate_dtype(offsets.dtype)
        offsets = offsets.to(dtype).reshape(*per_head, self.num_levels, self.num_points, 2)
        # (B, Q, heads, levels, points, 2)
        offsets = offsets / _map_sizes(spatial_shapes, offsets)
        locations = reference_points.to(dtype)[:, :, None, :, None] + offsets

        weights = self.attention_weights(query).reshape(*per_head, -1)
        weights = weights.softmax(-1, dtype=dtype)
        weights = weights.reshape(*per_head, self.num_levels, self.num_points)

        value = self.value_proj(value).unflatten(-1, (self.num_heads, -1))
        return self.output_proj(ms_deform_attn(value, spatial_shapes, locations, weights))

    def _check_forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> None:
        for name, tensor in (("query", query), ("value", value)):
            if tensor.dim() != 3 or tensor.shape[-1] != self.embed_dim:
                raise ValueError(
                    f"{name} must have shape (batch, tokens, embed_dim={self.embed_dim}), "
                    f"got {tuple(tensor.shape)}"
                )
        if len(spatial_shapes) != self.num_levels:
            raise ValueError(
                f"spatial_shapes must have num_levels={self.num_levels} entries, "
                f"got {list(spatial_shapes)}"
            )
        if reference_points.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"reference_points must be float32, got {reference_points.dtype}")
        shape = tuple(reference_points.shape)
        batch, queries, _ = query.shape
        if (
            len(shape) != 4
            or shape[0] not in (1, batch)
            or shape[1] != queries
            or shape[2] not in (1, self.num_levels)
            or shape[3] != 2
        ):
            raise ValueError(
                f"reference_points must have shape (1 or batch={batch}, queries={queries}, 1 or "
                f"levels={self.num_levels}, 2), got {shape}"
            )
