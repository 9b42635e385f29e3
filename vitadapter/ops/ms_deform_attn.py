"""Multi-scale deformable attention as operators (Deformable DETR, equation 3), in two forms.

`ms_deform_attn_fused` is what the models use: softmax and location arithmetic happen inside the
kernels, and once more in the backward pass, so that neither locations nor weights are ever stored.
`ms_deform_attn` is the drop-in for the extension of other projects, which compute both first.
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
    """Sum bilinear samples of several feature maps, weighted.

    A drop-in for the extension that other projects build (`kernels/README.md` has the line).

    A sample outside its map, or at a NaN or infinite location, adds nothing whatever its weight,
    NaN included, and gets no gradient.
    Locations are never handled in half precision: at a width of 152 it would shift them by up to
    0.07 pixels.

    Args:
        value: Feature maps as tokens, one after the other and row by row,
            `(B, S, heads, head_dim)`, in float32, float64, float16 or bfloat16 (sums of the half
            types are float32).
        spatial_shapes: (height, width) of each map; `S` is the sum of their products. `tolist`
            of a tensor on the GPU waits for the GPU, so better keep the integers.
        sampling_locations: `(B, Q, heads, levels, points, 2)` as (x, y), where (0, 0) and (1, 1)
            are the outer corners of a map. float32, or float64 if `value` is; half types are
            upcast.
        attention_weights: `(B, Q, heads, levels, points)`, dtype as `sampling_locations`.

    Returns:
        `(B, Q, heads * head_dim)` in the dtype of `value`.

    Raises:
        TypeError: if a dtype is wrong.
        ValueError: if shapes or devices do not go together.
    """
    return UNFUSED(value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """`ms_deform_attn` by `grid_sample`, with the same arguments."""
    return UNFUSED.reference(value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """`ms_deform_attn` at `reference + offset / size`, weighted by `softmax(logits)`.

    Args:
        value: as for `ms_deform_attn`.
        spatial_shapes: as for `ms_deform_attn`.
        reference_points: `(B or 1, Q, levels or 1, 2)` as (x, y), where (0, 0) and (1, 1) are
            the outer corners of a map. float32, or float64 if `value` is; half types are upcast.
        sampling_offsets: `(B, Q, heads, levels, points, 2)` in pixels of the level, dtype of
            `value`.
        attention_logits: `(B, Q, heads, levels, points)`, dtype of `value`; the softmax runs
            over levels and points together.

    Returns:
        `(B, Q, heads * head_dim)` in the dtype of `value`.

    Raises:
        TypeError: if a dtype is wrong.
        ValueError: if shapes or devices do not go together.
    """
    return FUSED(value, spatial_shapes, reference_points, sampling_offsets, attention_logits)


def ms_deform_attn_fused_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """`ms_deform_attn_fused` by `grid_sample`, with the same arguments."""
    return FUSED.reference(
        value, spatial_shapes, reference_points, sampling_offsets, attention_logits
    )
