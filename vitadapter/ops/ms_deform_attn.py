"""Multi-scale deformable attention as operators (Deformable DETR, equation 3), in two forms.

The models use `ms_deform_attn_fused`. It computes the softmax and the locations inside the kernels,
and again in the backward pass, so that neither locations nor weights are ever stored.
`ms_deform_attn` replaces the extension of other projects, which compute both first.
"""

from collections.abc import Sequence

from torch import Tensor

from vitadapter.ops.arguments import Argument
from vitadapter.ops.library import Operator
from vitadapter.ops.reference import sample, sample_backward, sample_fused, sample_fused_backward

__all__ = [
    "FUSED",
    "UNFUSED",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "ms_deform_attn_fused_reference",
    "ms_deform_attn_reference",
]

UNFUSED = Operator(
    "ms_deform_attn",
    {
        "sampling_locations": Argument("batch queries heads levels points xy", is_coordinate=True),
        "attention_weights": Argument("batch queries heads levels points", is_coordinate=True),
    },
    sample,
    sample_backward,
).register()

FUSED = Operator(
    "ms_deform_attn_fused",
    {
        "reference_points": Argument("1|batch queries 1|levels xy", is_coordinate=True),
        "sampling_offsets": Argument("batch queries heads levels points xy"),
        "attention_logits": Argument("batch queries heads levels points"),
    },
    sample_fused,
    sample_fused_backward,
).register()


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sums weighted bilinear samples of several feature maps.

    It replaces the extension that other projects build; `kernels/README.md` has the line to change.

    A sample outside its map, or at a NaN or infinite location, adds nothing whatever its weight,
    even if that is NaN, and has no gradient. Locations are never handled in half precision, which
    would shift them by up to 0.07 pixels in a map of width 152.

    Args:
        value: feature maps as tokens, one after the other and row by row,
            `(B, S, heads, head_dim)`, in float32, float64, float16 or bfloat16. Sums of the
            last two are float32.
        spatial_shapes: (height, width) of each map; `S` is the sum of their products. Keep
            them as integers: `tolist` of a tensor on the GPU waits for the GPU.
        sampling_locations: `(B, Q, heads, levels, points, 2)` as (x, y), where (0, 0) and (1, 1)
            are the outer corners of a map; in float32, or float64 if `value` is. Half precision is
            converted.
        attention_weights: `(B, Q, heads, levels, points)`, in the dtype of `sampling_locations`.

    Returns:
        `(B, Q, heads * head_dim)` in the dtype of `value`.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes or devices do not fit together.
    """
    return UNFUSED(value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """`ms_deform_attn` computed by `grid_sample`, with the same arguments."""
    return UNFUSED.reference(value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """`ms_deform_attn` at `reference + offset / size`, weighted by `softmax(logits)`.

    It returns and raises the same as `ms_deform_attn`.

    Args:
        value, spatial_shapes: as for `ms_deform_attn`.
        reference_points: `(B or 1, Q, levels or 1, 2)` as (x, y), where (0, 0) and (1, 1) are
            the outer corners of a map; in float32, or float64 if `value` is. Half precision is
            converted.
        sampling_offsets: `(B, Q, heads, levels, points, 2)` in pixels of the level, in the
            dtype of `value`.
        attention_logits: `(B, Q, heads, levels, points)`, in the dtype of `value`; the
            softmax is over levels and points together.
    """
    return FUSED(value, spatial_shapes, reference_points, sampling_offsets, attention_logits)


def ms_deform_attn_fused_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """`ms_deform_attn_fused` computed by `grid_sample`, with the same arguments."""
    return FUSED.reference(
        value, spatial_shapes, reference_points, sampling_offsets, attention_logits
    )
