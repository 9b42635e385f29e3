"""Inputs that the tests of the deformable-attention operator share."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import vitadapter.ops  # noqa: F401  (registers the operator)

OP = torch.ops.vitadapter.ms_deform_attn
BACKWARD_OP = torch.ops.vitadapter.ms_deform_attn_backward
FUSED_OP = torch.ops.vitadapter.ms_deform_attn_fused
FUSED_BACKWARD_OP = torch.ops.vitadapter.ms_deform_attn_fused_backward
SHAPES = [(5, 7), (3, 2)]
FLAT = [5, 7, 3, 2]
TOKENS = 41
# All that torch.library.opcheck() knows; by default it leaves out the static one.
OPCHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_static",
    "test_aot_dispatch_dynamic",
)


def make_inputs(
    batch: int = 2,
    queries: int = 4,
    heads: int = 3,
    head_dim: int = 5,
    points: int = 2,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations (about a third of them outside) and weights for ``SHAPES``."""
    generator = torch.Generator().manual_seed(0)
    coordinate = torch.float64 if dtype == torch.float64 else torch.float32
    size = (batch, queries, heads, len(SHAPES), points)
    value = torch.randn(batch, TOKENS, heads, head_dim, generator=generator, dtype=torch.float64)
    locations = torch.rand(*size, 2, generator=generator, dtype=torch.float64) * 1.5 - 0.25
    weights = torch.randn(size, generator=generator, dtype=torch.float64)
    return (
        value.to(device, dtype),
        locations.to(device, coordinate),
        weights.to(device, coordinate),
    )


def make_fused_inputs(
    batch: int = 2,
    queries: int = 4,
    heads: int = 3,
    head_dim: int = 5,
    points: int = 2,
    shapes: Sequence[tuple[int, int]] = tuple(SHAPES),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    reference_batch: int = 1,
    reference_levels: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, reference points, offsets (some lead outside) and logits for ``shapes``.

    All are short binary fractions that every dtype holds exactly. No sampling point lies nearer
    than 1/16 pixel to a line between pixel centres, where its gradient jumps.
    """
    generator = torch.Generator().manual_seed(0)
    coordinate = torch.float64 if dtype == torch.float64 else torch.float32
    size = (batch, queries, heads, len(shapes), points)
    tokens = sum(height * width for height, width in shapes)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    value, logits = draw(batch, tokens, heads, head_dim), draw(*size)
    # Pixel coordinate = reference * size + offset - 1/2: a multiple of 1/8, plus 1/16.
    reference = torch.randint(
        0, 9, (reference_batch, queries, reference_levels, 2), generator=generator
    )
    offsets = (draw(*size, 2) * 6).round() / 4 + 1 / 16
    return (
        ((value * 16).round() / 16).to(device, dtype),
        (reference / 8).to(device, coordinate),
        offsets.to(device, dtype),
        ((logits * 16).round() / 16).to(device, dtype),
    )


def gradients(
    function: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    grad_output: Tensor,
    shapes: Sequence[tuple[int, int]] = tuple(SHAPES),
) -> list[Tensor]:
    """Output and gradients of ``function(value, shapes, *other inputs)``."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(leaves[0], shapes, *leaves[1:])
    return [output, *torch.autograd.grad(output, leaves, grad_output)]


def assert_same(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance, check_dtype=False)
