"""Inputs that the tests of the deformable-attention operator share."""

from collections.abc import Callable

import torch
from torch import Tensor

import vitadapter.layers  # noqa: F401  (registers the operator)

OP = torch.ops.vitadapter.ms_deform_attn
BACKWARD_OP = torch.ops.vitadapter.ms_deform_attn_backward
SHAPES = [(5, 7), (3, 2)]
FLAT = [5, 7, 3, 2]
TOKENS = 41


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


def gradients(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad_output: Tensor
) -> list[Tensor]:
    """Output and gradients of ``function(value, SHAPES, locations, weights)``."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(leaves[0], SHAPES, leaves[1], leaves[2])
    return [output, *torch.autograd.grad(output, leaves, grad_output)]


def assert_same(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance, check_dtype=False)
