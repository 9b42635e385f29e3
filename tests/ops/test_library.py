"""What PyTorch asks of an operator: gradients, fake tensors, autograd, autocast."""

from collections.abc import Callable

import pytest
import torch
from ms_deform_attn_cases import BACKWARD_OP, FLAT, OP, OPCHECKS, SHAPES, make_inputs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vitadapter.ops import ms_deform_attn

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _separated_locations(batch: int, queries: int, heads: int) -> Tensor:
    """Locations at least a quarter pixel from every pixel centre, where the slope jumps."""
    generator = torch.Generator().manual_seed(1)
    levels = []
    for height, width in SHAPES:
        size = torch.tensor([width, height], dtype=torch.float64)
        shape = (batch, queries, heads, 1, 2, 2)
        cell = (torch.rand(shape, generator=generator) * (size + 1)).floor() - 1
        inside = 0.25 + 0.5 * torch.rand(shape, generator=generator, dtype=torch.float64)
        levels.append((cell + inside + 0.5) / size)
    return torch.cat(levels, 3)


def test_gradcheck(device: torch.device) -> None:
    value, _, weights = make_inputs(batch=2, queries=2, heads=2, head_dim=3)
    locations = _separated_locations(2, 2, 2)
    leaves = [tensor.to(device).requires_grad_() for tensor in (value, locations, weights)]

    def function(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, SHAPES, locations, weights)

    assert torch.autograd.gradcheck(function, leaves, nondet_tol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_forward(dtype: torch.dtype, device: torch.device) -> None:
    value, locations, weights = (
        t.requires_grad_() for t in make_inputs(dtype=dtype, device=device)
    )
    torch.library.opcheck(OP.default, (value, FLAT, locations, weights), test_utils=OPCHECKS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_backward(dtype: torch.dtype, device: torch.device) -> None:
    value, locations, weights = make_inputs(dtype=dtype, device=device)
    grad_output = torch.randn(2, 4, 15).to(device, dtype)
    arguments = (grad_output, value, FLAT, locations, weights)
    torch.library.opcheck(BACKWARD_OP.default, arguments, test_utils=OPCHECKS)


def test_opcheck_non_contiguous() -> None:
    value, locations, weights = make_inputs(batch=4, queries=4)
    locations, weights = locations.transpose(0, 1), weights.transpose(0, 1)
    value = value.transpose(1, 2).contiguous().transpose(1, 2)
    assert not any(tensor.is_contiguous() for tensor in (value, locations, weights))
    torch.library.opcheck(OP.default, (value, FLAT, locations, weights))
    grad_output = torch.randn(15, 4, 4, dtype=torch.float64).transpose(0, 2)
    torch.library.opcheck(BACKWARD_OP.default, (grad_output, value, FLAT, locations, weights))


def test_double_backward_is_refused() -> None:
    leaves = [tensor.requires_grad_() for tensor in make_inputs()]
    output = ms_deform_attn(leaves[0], SHAPES, *leaves[1:])
    (grad,) = torch.autograd.grad(output.sum(), leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", [ms_deform_attn, OP])
def test_autocast(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    value, locations, weights = make_inputs(dtype=dtype)
    shapes = FLAT if function is OP else SHAPES
    expected = ms_deform_attn(value, SHAPES, locations.to(dtype).float(), weights)
    with torch.autocast("cpu", dtype):
        output = function(value, shapes, locations.to(dtype), weights)
        full = function(value.float(), shapes, locations.to(dtype), weights)
    assert output.dtype == dtype
    assert torch.equal(output, expected)
    assert full.dtype == torch.float32


def test_half_locations_need_autocast_or_wrapper() -> None:
    value, locations, weights = make_inputs(dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="sampling_locations"):
        OP(value, FLAT, locations.bfloat16(), weights)


def test_saves_only_its_inputs() -> None:
    leaves = [tensor.requires_grad_() for tensor in make_inputs()]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.data_ptr()) or tensor, lambda tensor: tensor
    ):
        ms_deform_attn(leaves[0], SHAPES, *leaves[1:])
    assert sorted(saved) == sorted(leaf.data_ptr() for leaf in leaves)


def test_pytorch_counts_its_flops() -> None:
    value, locations, weights = make_inputs(batch=2, queries=3, heads=2, head_dim=5)
    taps = weights.shape[-2:].numel()
    with FlopCounterMode(display=False) as counter:
        output = ms_deform_attn(value.requires_grad_(), SHAPES, locations, weights)
        forward = counter.get_total_flops()
        output.sum().backward()
    # For every value of the output and every tap: four neighbours and one weight.
    assert forward == 2 * output.numel() * taps * 5
    assert counter.get_total_flops() == 3 * forward
