"""The fused operator: its numbers, its gradients, and what PyTorch asks of an operator."""

import math
from collections.abc import Callable

import pytest
import torch
from ms_deform_attn_cases import (
    FLAT,
    FUSED_BACKWARD_OP,
    FUSED_OP,
    OPCHECKS,
    SHAPES,
    assert_same,
    gradients,
    make_fused_inputs,
)
from torch import Tensor

from vitadapter.ops import (
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
)
from vitadapter.ops.ms_deform_attn import FUSED

Operator = Callable[..., Tensor]
BOTH = [ms_deform_attn_fused, ms_deform_attn_fused_reference]


def composed(
    value: Tensor,
    shapes: list[tuple[int, int]],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Deformable DETR's composition: locations and weights first, then the unfused operator."""
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=value.dtype, device=value.device)
    locations = reference_points[:, :, None, :, None] + offsets / sizes[:, None]
    weights = logits.flatten(3).softmax(-1).reshape(logits.shape)
    return ms_deform_attn_reference(value, shapes, locations, weights)


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("reference_batch", [1, 2])
@pytest.mark.parametrize("reference_levels", [1, 2])
def test_equals_composition(
    function: Operator,
    reference_batch: int,
    reference_levels: int,
    device: torch.device,
) -> None:
    inputs = make_fused_inputs(
        reference_batch=reference_batch, reference_levels=reference_levels, device=device
    )
    grad_output = torch.randn(2, 4, 15, dtype=torch.float64).to(device)
    expected = gradients(composed, inputs, grad_output)
    assert expected[2].shape == (reference_batch, 4, reference_levels, 2)
    assert all(tensor.ne(0).any() for tensor in expected)
    assert_same(gradients(function, inputs, grad_output), expected, 1e-10)


def test_fallback_backward_equals_autograd_of_composition() -> None:
    inputs = make_fused_inputs()
    grad_output = torch.randn(2, 4, 15, dtype=torch.float64)
    got = FUSED.backward_reference(grad_output, inputs[0], FLAT, *inputs[1:])
    assert_same(list(got), gradients(composed, inputs, grad_output)[1:], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_sum_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    inputs = make_fused_inputs(dtype=dtype, points=8, device=device)
    grad_output = torch.randn(2, 4, 15).to(device, dtype)
    got = gradients(ms_deform_attn_fused, inputs, grad_output)
    assert [t.dtype for t in got] == [dtype, dtype, torch.float32, dtype, dtype]
    # The same numbers in float32: what is left is the rounding of the results themselves.
    full = tuple(tensor.float() for tensor in inputs)
    expected = gradients(ms_deform_attn_fused, full, grad_output.float())
    for a, b in zip(got, expected, strict=True):
        rounding = torch.finfo(a.dtype).eps
        torch.testing.assert_close(a.float(), b, rtol=rounding, atol=2e-6)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38])
@pytest.mark.parametrize("where", ["reference", "offset"])
def test_far_locations_are_zero(
    function: Operator,
    dtype: torch.dtype,
    far: float,
    where: str,
    device: torch.device,
) -> None:
    inputs = make_fused_inputs(dtype=dtype, device=device)
    (inputs[1] if where == "reference" else inputs[2])[:, 1, ..., 0] = far
    grad_output = torch.ones(2, 4, 15, dtype=dtype, device=device)
    results = gradients(function, inputs, grad_output)
    output, _, grad_reference, grad_offsets, grad_logits = results
    for tensor in (output, grad_reference, grad_offsets, grad_logits):
        assert tensor[:, 1].eq(0).all()
        assert tensor[:, 2].ne(0).any()
    assert all(tensor.isfinite().all() for tensor in results)


@pytest.mark.parametrize("function", BOTH)
def test_huge_logits(function: Operator, device: torch.device) -> None:
    """The softmax neither overflows nor loses the largest term; -inf switches a tap off."""
    for dtype in (torch.float32, torch.float64):
        value, reference, offsets, logits = make_fused_inputs(dtype=dtype, device=device)
        logits[:, 0] = -math.inf
        logits[:, 0, :, 1, 0] = -3e38
        logits[:, 1] += 1e4
        logits[:, 2, :, 0, 0] = 1e30
        output = function(value, SHAPES, reference, offsets, logits)
        weights = torch.zeros_like(logits)
        weights[:, 0, :, 1, 0] = 1
        weights[:, 2, :, 0, 0] = 1
        weights[:, [1, 3]] = logits[:, [1, 3]].flatten(3).softmax(-1).unflatten(-1, (2, 2))
        sizes = torch.tensor([(7, 5), (2, 3)], dtype=dtype, device=device)
        locations = reference[:, :, None, :, None] + offsets / sizes[:, None]
        expected = ms_deform_attn_reference(value, SHAPES, locations, weights)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize(("batch", "queries"), [(0, 4), (2, 0), (0, 0)])
def test_empty(function: Operator, batch: int, queries: int) -> None:
    inputs = make_fused_inputs(batch=batch, queries=queries)
    grad_output = torch.zeros(batch, queries, 15, dtype=torch.float64)
    output, *grads = gradients(function, inputs, grad_output)
    assert output.shape == (batch, queries, 15)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in inputs]
    assert all(grad.eq(0).all() for grad in grads)


def test_non_contiguous(device: torch.device) -> None:
    inputs = make_fused_inputs(device=device)
    grad_output = torch.randn(2, 4, 15, dtype=torch.float64).to(device)
    expected = gradients(ms_deform_attn_fused, inputs, grad_output)
    # Every other element is NaN, so that reading with the wrong stride cannot go unseen.
    strided = [
        torch.stack([tensor, tensor * math.nan], -1)[..., 0] for tensor in (*inputs, grad_output)
    ]
    assert not any(tensor.is_contiguous() for tensor in strided)
    got = gradients(ms_deform_attn_fused, tuple(strided[:-1]), strided[-1])
    assert_same(got, expected, 0)


# --- PyTorch's rules ----------------------------------------------------------------------------


def test_gradcheck(device: torch.device) -> None:
    inputs = make_fused_inputs(queries=2, heads=2, head_dim=3, device=device)
    leaves = [tensor.requires_grad_() for tensor in inputs]

    def function(value: Tensor, *others: Tensor) -> Tensor:
        return ms_deform_attn_fused(value, SHAPES, *others)

    assert torch.autograd.gradcheck(function, leaves, nondet_tol=1e-12)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_opcheck(dtype: torch.dtype, device: torch.device) -> None:
    value, *others = (t.requires_grad_() for t in make_fused_inputs(dtype=dtype, device=device))
    torch.library.opcheck(FUSED_OP.default, (value, FLAT, *others), test_utils=OPCHECKS)
    value, *others = make_fused_inputs(dtype=dtype, device=device)
    grad_output = torch.randn(2, 4, 15).to(device, dtype)
    arguments = (grad_output, value, FLAT, *others)
    torch.library.opcheck(FUSED_BACKWARD_OP.default, arguments, test_utils=OPCHECKS)


def test_opcheck_non_contiguous() -> None:
    value, reference, offsets, logits = make_fused_inputs(batch=4, queries=4)
    offsets, logits = offsets.transpose(0, 1), logits.transpose(0, 1)
    reference = reference.expand(4, 4, 2, 2)
    torch.library.opcheck(FUSED_OP.default, (value, FLAT, reference, offsets, logits))
    grad_output = torch.randn(15, 4, 4, dtype=torch.float64).transpose(0, 2)
    torch.library.opcheck(
        FUSED_BACKWARD_OP.default, (grad_output, value, FLAT, reference, offsets, logits)
    )


def test_double_backward_is_refused() -> None:
    leaves = [tensor.requires_grad_() for tensor in make_fused_inputs()]
    output = ms_deform_attn_fused(leaves[0], SHAPES, *leaves[1:])
    (grad,) = torch.autograd.grad(output.sum(), leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


def test_saves_only_its_inputs() -> None:
    leaves = [tensor.requires_grad_() for tensor in make_fused_inputs()]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.data_ptr()) or tensor, lambda tensor: tensor
    ):
        ms_deform_attn_fused(leaves[0], SHAPES, *leaves[1:])
    assert sorted(saved) == sorted(leaf.data_ptr() for leaf in leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", [ms_deform_attn_fused, FUSED_OP])
def test_autocast(function: Operator, dtype: torch.dtype) -> None:
    value, reference, offsets, logits = make_fused_inputs(dtype=dtype)
    shapes = FLAT if function is FUSED_OP else SHAPES
    expected = ms_deform_attn_fused(value, SHAPES, reference, offsets, logits)
    with torch.autocast("cpu", dtype):
        output = function(value, shapes, reference, offsets.float(), logits.float())
        full = function(value.float(), shapes, reference.to(dtype), offsets, logits)
    assert torch.equal(output, expected)
    assert full.dtype == torch.float32
    torch.testing.assert_close(full.to(dtype), expected)


# --- wrong inputs -------------------------------------------------------------------------------


def _wrong_inputs() -> dict[str, tuple[type[Exception], str, dict[str, Tensor | list[int]]]]:
    """Name -> error, part of its message, arguments that differ from the right ones."""
    value, reference, offsets, logits = make_fused_inputs()
    return {
        "value dims": (ValueError, "value must have shape", {"value": value[0]}),
        "no channels": (ValueError, "at least one head|head_dim >= 1", {"value": value[..., :0]}),
        "tokens": (ValueError, r"one token per cell.*got 40 tokens", {"value": value[:, :40]}),
        "no levels": (ValueError, "spatial_shapes must", {"shapes": []}),
        "zero": (ValueError, "must be positive", {"shapes": [41, 1, 0, 2]}),
        "overflow": (ValueError, "one token per cell", {"shapes": [2**62, 4, 41, 1]}),
        "reference dims": (ValueError, "reference_points must", {"reference": reference[0]}),
        "reference queries": (ValueError, "queries=4", {"reference": reference[:, :3]}),
        "reference batch": (ValueError, "batch=2", {"reference": reference.repeat(3, 1, 1, 1)}),
        "reference levels": (ValueError, "levels=2", {"reference": reference.repeat(1, 1, 3, 1)}),
        "reference xy": (ValueError, "reference_points must", {"reference": reference[..., :1]}),
        "offsets dims": (ValueError, "sampling_offsets must", {"offsets": offsets[..., 0]}),
        "offsets heads": (ValueError, "heads=3", {"offsets": offsets[:, :, :2]}),
        "no points": (
            ValueError,
            "points >= 1",
            {"offsets": offsets[..., :0, :], "logits": logits[..., :0]},
        ),
        "logits": (ValueError, "attention_logits must have", {"logits": logits[:, :3]}),
        "integer value": (TypeError, "value must be float32", {"value": value.long()}),
        "value narrower": (TypeError, "dtype of value", {"value": value.float()}),
        "offsets narrower": (TypeError, "dtype of value", {"offsets": offsets.float()}),
        "logits narrower": (TypeError, "dtype of value", {"logits": logits.half()}),
        "reference narrower": (
            TypeError,
            "reference_points must be .*(float64|Double)",
            {"reference": reference.float()},
        ),
        "value on meta": (ValueError, "one device.*meta", {"value": value.to("meta")}),
        "reference on meta": (ValueError, "one device.*meta", {"reference": reference.to("meta")}),
    }


WRONG_INPUTS = _wrong_inputs()


def _call(path: str, value: Tensor, flat: list[int], *others: Tensor) -> None:
    if path == "operator":
        FUSED_OP(value, flat, *others)
    elif path == "traced":
        FUSED_OP(value.to("meta"), flat, *(tensor.to("meta") for tensor in others))
    elif path == "backward":
        FUSED_BACKWARD_OP(torch.ones(2, 4, 15, dtype=torch.float64), value, flat, *others)
    else:
        pairs = [tuple(flat[i : i + 2]) for i in range(0, len(flat), 2)]
        BOTH[path == "reference"](value, pairs, *others)


PATHS = ("wrapper", "reference", "operator", "backward", "traced")


@pytest.mark.parametrize(
    ("name", "path"),
    # When traced, everything is on meta.
    [(n, p) for n in WRONG_INPUTS for p in PATHS if not (p == "traced" and "meta" in n)],
)
def test_wrong_inputs_are_refused(name: str, path: str) -> None:
    error, message, changes = WRONG_INPUTS[name]
    names = ("value", "reference", "offsets", "logits")
    arguments = dict(zip(names, make_fused_inputs(), strict=True), shapes=FLAT) | changes
    flat = arguments.pop("shapes")
    value, *others = arguments.values()
    with pytest.raises(error, match=message):
        _call(path, value, flat, *others)


@pytest.mark.parametrize("device_type", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [((2, 4, 14), torch.float64, ValueError), ((2, 4, 15), torch.float32, TypeError)],
)
def test_wrong_grad_output_is_refused(
    shape: tuple[int, ...], dtype: torch.dtype, error: type[Exception], device_type: str
) -> None:
    value, *others = make_fused_inputs(device=device_type)
    grad_output = torch.ones(shape, dtype=dtype, device=device_type)
    with pytest.raises(error, match="ms_deform_attn_fused_backward: grad_output"):
        FUSED_BACKWARD_OP(grad_output, value, FLAT, *others)


def test_more_than_kernels_can_number() -> None:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(1).expand(shape)

    reference, few = zeros(1, 1, 1, 2), (zeros(1, 1, 1, 1, 1, 2), zeros(1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="at most 2147483647 tokens"):
        FUSED_OP(zeros(1, 2**31, 1, 1), [2**16, 2**15], reference, *few)
    few = (zeros(1, 1, 2**16, 1, 1, 2), zeros(1, 1, 2**16, 1, 1))
    with pytest.raises(ValueError, match="at most 1073741824 channels in all its heads"):
        FUSED_OP(zeros(1, 1, 2**16, 2**15), [1, 1], reference, *few)
    many = (zeros(1, 1, 1, 1, 2**31, 2), zeros(1, 1, 1, 1, 2**31))
    with pytest.raises(ValueError, match="at most 1073741824 points in all levels"):
        FUSED_OP(zeros(1, 1, 1, 1), [1, 1], reference, *many)
