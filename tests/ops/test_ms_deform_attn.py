"""The operator's numbers against golden files, a loop in numpy, and values known by hand."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from ms_deform_attn_cases import FLAT, SHAPES, assert_same, gradients, make_inputs
from torch import Tensor

from vitadapter.ops import ms_deform_attn, ms_deform_attn_reference
from vitadapter.ops.ms_deform_attn import UNFUSED

Operator = Callable[..., Tensor]
IMPLEMENTATIONS = [ms_deform_attn, ms_deform_attn_reference]


def loop_reference(value: np.ndarray, locations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The definition of the operator, one sample after the other."""
    batch, queries, heads, _, points, _ = locations.shape
    output = np.zeros((batch, queries, heads, value.shape[-1]))
    for b, q, k, p in np.ndindex(batch, queries, heads, points):
        first = 0
        for level, (height, width) in enumerate(SHAPES):
            x = locations[b, q, k, level, p, 0] * width - 0.5
            y = locations[b, q, k, level, p, 1] * height - 0.5
            for row in range(height):
                for column in range(width):
                    share = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                    token = first + row * width + column
                    output[b, q, k] += weights[b, q, k, level, p] * share * value[b, token, k]
            first += height * width
    return output.reshape(batch, queries, -1)


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_equals_loop(function: Operator, device: torch.device) -> None:
    inputs = make_inputs(device=device)
    expected = loop_reference(*(tensor.cpu().numpy() for tensor in inputs))
    output = function(inputs[0], SHAPES, *inputs[1:])
    np.testing.assert_allclose(output.cpu().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 5e-5)])
@pytest.mark.parametrize("case", ["core_a", "core_b", "core_c"])
def test_golden_operator(
    function: Operator,
    dtype: torch.dtype,
    tolerance: float,
    case: str,
    golden: ModuleType,
) -> None:
    _, _, arrays = golden.load(golden.path("op_ms_deform_attn"))

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(arrays[f"{case}_{name}"])

    shapes = [tuple(shape) for shape in tensor("shapes").tolist()]
    leaves = [tensor(name).to(dtype).requires_grad_() for name in ("value", "loc", "attn")]
    output = function(leaves[0], shapes, *leaves[1:])
    grads = torch.autograd.grad(output, leaves, tensor("grad_out").to(dtype))
    expected = [tensor(name) for name in ("out", "g_value", "g_loc", "g_attn")]
    assert_same([output, *grads], expected, tolerance)


@pytest.mark.parametrize("head_dim", [1, 5, 16, 32, 67])
def test_gradients_equal_reference(head_dim: int, device: torch.device) -> None:
    inputs = make_inputs(head_dim=head_dim, device=device)
    grad_output = torch.randn(2, 4, 3 * head_dim, dtype=torch.float64).to(device)
    got, expected = (gradients(function, inputs, grad_output) for function in IMPLEMENTATIONS)
    assert_same(got, expected, 1e-10)


def test_fallback_backward_equals_autograd_of_reference() -> None:
    inputs = make_inputs()
    grad_output = torch.randn(2, 4, 15, dtype=torch.float64)
    _, *expected = gradients(ms_deform_attn_reference, inputs, grad_output)
    got = UNFUSED.backward_reference(grad_output, inputs[0], FLAT, *inputs[1:])
    assert_same(list(got), expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_sum_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    value, locations, weights = make_inputs(dtype=dtype, points=8, device=device)
    grad_output = torch.randn(2, 4, 15).to(device, dtype)
    got = gradients(ms_deform_attn, (value, locations, weights), grad_output)
    assert [tensor.dtype for tensor in got] == [dtype, dtype, torch.float32, torch.float32]
    # The same numbers in float32: what is left is the rounding of the results themselves.
    expected = gradients(ms_deform_attn, (value.float(), locations, weights), grad_output.float())
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(got[0].float(), expected[0], rtol=rounding, atol=1e-6)
    torch.testing.assert_close(got[1].float(), expected[1], rtol=rounding, atol=1e-6)
    assert_same(got[2:], expected[2:], 1e-5)


def test_replaces_the_usual_extension(repository: Path) -> None:
    """The line in the kernels' README takes the arguments that other projects have."""
    text = (repository / "kernels" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    value, locations, weights = make_inputs()
    names = {
        "value": value,
        "spatial_shapes": torch.as_tensor(SHAPES),
        "sampling_locations": locations,
        "attention_weights": weights,
    }
    exec(code, names)
    expected = loop_reference(*(tensor.numpy() for tensor in (value, locations, weights)))
    np.testing.assert_allclose(names["output"].numpy(), expected, atol=1e-12)


# --- special locations --------------------------------------------------------------------------


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38, 1.5, -0.6])
@pytest.mark.parametrize("axis", [0, 1])
def test_far_locations_are_zero(
    function: Operator, dtype: torch.dtype, far: float, axis: int, device: torch.device
) -> None:
    value, locations, weights = make_inputs(dtype=dtype, device=device)
    locations[:, 1, ..., axis] = far
    results = gradients(
        function, (value, locations, weights), torch.ones(2, 4, 15, dtype=dtype, device=device)
    )
    output, grad_value, grad_locations, grad_weights = results
    assert output[:, 1].eq(0).all()
    assert grad_locations[:, 1].eq(0).all()
    assert grad_weights[:, 1].eq(0).all()
    assert all(tensor.isfinite().all() for tensor in results)
    # Nor does that query leave anything in the gradient of the value.
    weights[:, 1] = 0
    locations[:, 1] = 0.5
    _, without, *_ = gradients(
        function, (value, locations, weights), torch.ones(2, 4, 15, dtype=dtype, device=device)
    )
    torch.testing.assert_close(grad_value, without)


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [math.nan, -1e30, 1.5])
@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_far_locations_are_zero_whatever_their_weight(
    function: Operator, dtype: torch.dtype, far: float, weight: float, device: torch.device
) -> None:
    value, locations, weights = make_inputs(dtype=dtype, device=device)
    locations[:, 1, ..., 0, 0] = far
    weights[:, 1, ..., 0] = 0
    grad_output = torch.ones(2, 4, 15, dtype=dtype, device=device)
    expected = gradients(function, (value, locations, weights), grad_output)
    weights[:, 1, ..., 0] = weight
    results = gradients(function, (value, locations, weights), grad_output)
    assert all(tensor.isfinite().all() for tensor in results)
    assert_same(results, expected, 0)


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_weights_inside_that_are_not_finite(
    function: Operator, weight: float, device: torch.device
) -> None:
    """They spoil their own query, and no other."""
    value, locations, weights = make_inputs(device=device)
    locations[:, 1] = 0.4
    weights[:, 1, :, 0, 0] = weight
    output = function(value, SHAPES, locations, weights)
    assert not output[:, 1].isfinite().any()
    assert output[:, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_on_borders_and_pixel_centres(function: Operator, device: torch.device) -> None:
    """A ramp ``f(x) = x + 1`` over four pixels, zero outside, at places known by hand."""
    value = torch.arange(1.0, 5.0, dtype=torch.float64, device=device).reshape(1, 4, 1, 1)
    # left: a pixel outside, outer edge, first centre; middle; right: last centre, edge, outside
    places = torch.tensor([-0.125, 0.0, 0.125, 0.5, 0.875, 1.0, 1.125], dtype=torch.float64)
    locations = torch.stack([places, torch.full_like(places, 0.5)], -1).to(device)
    locations = locations.reshape(1, 7, 1, 1, 1, 2)
    weights = torch.ones(1, 7, 1, 1, 1, dtype=torch.float64, device=device)
    output = function(value, [(1, 4)], locations, weights)
    assert output.flatten().tolist() == [0.0, 0.5, 1.0, 2.5, 4.0, 2.0, 0.0]


def test_border_gradients_equal_reference(device: torch.device) -> None:
    places = torch.tensor([-0.125, 0.0, 0.125, 0.5, 0.875, 1.0, 1.125], dtype=torch.float64)
    grid = torch.cartesian_prod(places, places).to(device)  # on a 4 x 4 map: exact in binary
    value = torch.randn(1, 16, 1, 2, dtype=torch.float64).to(device)
    weights = torch.rand(1, 49, 1, 1, 1, dtype=torch.float64).to(device)
    results = []
    for function in IMPLEMENTATIONS:
        leaves = [value.clone(), grid.reshape(1, 49, 1, 1, 1, 2).clone(), weights.clone()]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        output = function(leaves[0], [(4, 4)], *leaves[1:])
        results.append(torch.autograd.grad(output.sum(), leaves))
    assert_same(*results, 1e-12)


# --- degenerate and awkward inputs --------------------------------------------------------------


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
@pytest.mark.parametrize(("batch", "queries"), [(0, 4), (2, 0), (0, 0)])
def test_empty(function: Operator, batch: int, queries: int, device: torch.device) -> None:
    inputs = make_inputs(batch=batch, queries=queries, device=device)
    output, *grads = gradients(
        function, inputs, torch.zeros(batch, queries, 15, dtype=torch.float64, device=device)
    )
    assert output.shape == (batch, queries, 15)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in inputs]
    assert all(grad.eq(0).all() for grad in grads)


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_non_contiguous(function: Operator, device: torch.device) -> None:
    inputs = make_inputs(device=device)
    grad_output = torch.randn(2, 4, 15, dtype=torch.float64).to(device)
    expected = gradients(function, inputs, grad_output)
    # Every other element is NaN, so that reading with the wrong stride cannot go unseen.
    strided = [
        torch.stack([tensor, tensor * math.nan], -1)[..., 0] for tensor in (*inputs, grad_output)
    ]
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert_same(gradients(function, tuple(strided[:3]), strided[3]), expected, 0)
    expanded = torch.ones((), dtype=torch.float64, device=device).expand(2, 4, 15)
    assert_same(
        gradients(function, inputs, expanded),
        gradients(function, inputs, expanded.contiguous()),
        0,
    )


def test_deterministic_for_any_number_of_threads() -> None:
    inputs = make_inputs(queries=300, dtype=torch.float32)
    grad_output = torch.randn(2, 300, 15)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(gradients(ms_deform_attn, inputs, grad_output))
    finally:
        torch.set_num_threads(threads)
    assert_same(results[1], results[0], 0)
    assert_same(results[2], results[0], 0)
