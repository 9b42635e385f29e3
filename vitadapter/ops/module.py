"""ViT-Adapter's attention module, which contains the deformable-attention operator."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitadapter.layers.fast import is_plain, linear, recomputed, run_linear
from vitadapter.ops.arguments import coordinate_dtype
from vitadapter.ops.ms_deform_attn import ms_deform_attn_fused, ms_deform_attn_fused_reference

__all__ = ["MSDeformAttn", "MSDeformAttnReference", "cell_centres"]


def cell_centres(
    hw: tuple[int, int], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Returns the centres of a map's cells, the reference points of deformable attention.

    Args:
        hw: height h and width w of the map.
        device: device of the result.
        dtype: dtype of the result; half precision would be too coarse.

    Returns:
        (1, h * w, 1, 2), row by row, as (x, y) in [0, 1].
    """
    y, x = ((torch.arange(side, dtype=dtype, device=device) + 0.5) / side for side in hw)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((x, y), dim=-1).view(1, hw[0] * hw[1], 1, 2)


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention with its projections (paper §3.3, Deformable DETR §4.1).

    Parameter names, layouts and initialisation are those of the official release. `operator`
    samples and sums between the projections. A subclass may replace it by another one that always
    gives the same result, because it may run again in the backward pass.

    Args:
        embed_dim: channels C of queries, input features and output.
        num_heads: attention heads; each learns its own offsets.
        num_levels: feature maps that are attended to.
        num_points: sampling points per query, head and level.
        ratio: width of the values relative to `embed_dim` (ViT-Adapter-B and -L use 0.5).

    Raises:
        ValueError: a size is not positive, or `num_heads` does not divide `embed_dim` and the width
            of the values.
    """

    operator = staticmethod(ms_deform_attn_fused)

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        ratio: float = 1.0,
    ) -> None:
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
        """Initialises it as Deformable DETR does: head k looks in the direction 2 pi k / heads.

        Its points lie 1, 2, ... pixels away, along the longer axis, and have equal weights.
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
        gamma: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            query: `(B, Q, C)`.
            reference_points: `(B or 1, Q, levels or 1, 2)` as (x, y) in [0, 1], in float32 (or
                float64) even if the module runs in half precision.
            value: input features of all levels as tokens, `(B, S, C)`.
            spatial_shapes: (height, width) of each level.
            gamma: what the output is multiplied by, `(C,)`; None for nothing.

        Returns:
            `(B, Q, C)`.

        Raises:
            TypeError: `reference_points` have a half-precision dtype.
            ValueError: wrong shape.
        """
        self._check_forward(query, reference_points, value, spatial_shapes, gamma)
        batch, queries, _ = query.shape
        taps = (batch, queries, self.num_heads, self.num_levels, self.num_points)
        offsets, logits = self._offsets_and_logits(query)
        offsets, logits = offsets.reshape(*taps, 2), logits.reshape(taps)
        value = run_linear(self.value_proj, value).unflatten(-1, (self.num_heads, -1))
        reference_points = reference_points.to(coordinate_dtype(value.dtype))

        def sample(value: Tensor, points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            return self.operator(value, spatial_shapes, points, offsets, logits)

        # The input of output_proj is as large as the query, and is sampled again in milliseconds.
        sampled = recomputed(sample, value, reference_points, offsets, logits)
        return run_linear(self.output_proj, sampled, gamma)

    def _offsets_and_logits(self, query: Tensor) -> tuple[Tensor, ...]:
        """Computes both projections of the query (B, Q, C)."""
        layers = (self.sampling_offsets, self.attention_weights)
        if not all(is_plain(layer, nn.Linear) for layer in layers):
            return tuple(run_linear(layer, query) for layer in layers)
        # One product for both reads the queries only once, and has one gradient for them.
        both = linear(
            query,
            torch.cat([layer.weight for layer in layers]),
            torch.cat([layer.bias for layer in layers]),
        )
        return both.split([layer.out_features for layer in layers], -1)

    def _check_forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        gamma: Tensor | None,
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
        if gamma is not None and not isinstance(gamma, Tensor):
            raise TypeError(f"gamma must be a tensor or None, got {gamma!r}")
        if gamma is not None and gamma.shape != (self.embed_dim,):
            raise ValueError(
                f"gamma must have shape (embed_dim={self.embed_dim},), got {tuple(gamma.shape)}"
            )
        if reference_points.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"reference_points must be float32 or float64, got {reference_points.dtype}"
            )


class MSDeformAttnReference(MSDeformAttn):
    """`MSDeformAttn` with PyTorch's own operators, for comparisons and for debugging.

    It is slower and needs more memory, but has the same parameters and takes the same checkpoints.
    It can be chosen on the command line::

        model.backbone.bottom_up.attention=vitadapter.ops.MSDeformAttnReference
    """

    operator = staticmethod(ms_deform_attn_fused_reference)
