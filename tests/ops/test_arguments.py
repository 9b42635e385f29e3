"""Wrong inputs of the operator: the same clear errors on every path, never a crash."""

import pytest
import torch
from ms_deform_attn_cases import BACKWARD_OP, FLAT, OP, SHAPES, make_inputs
from torch import Tensor

from vitadapter.ops import ms_deform_attn, ms_deform_attn_reference


def _wrong_inputs() -> dict[str, tuple[type[Exception], str, dict[str, Tensor | list[int]]]]:
    """Name -> error, part of its message, arguments that differ from the right ones."""
    value, locations, weights = make_inputs()
    return {
        "value dims": (ValueError, r"value must have shape", {"value": value[0]}),
        "value scalar": (ValueError, r"value must have shape", {"value": value.sum()}),
        "no heads": (ValueError, r"at least one head|heads >= 1", {"value": value[:, :, :0]}),
        "no channels": (ValueError, r"at least one head|head_dim >= 1", {"value": value[..., :0]}),
        "tokens": (ValueError, r"one token per cell.*got 40 tokens", {"value": value[:, :40]}),
        "no levels": (ValueError, r"spatial_shapes must", {"shapes": []}),
        "odd": (ValueError, r"spatial_shapes must", {"shapes": [5, 7, 3]}),
        "negative": (ValueError, r"must be positive", {"shapes": [-5, -7, 3, 2]}),
        "zero": (ValueError, r"must be positive", {"shapes": [41, 1, 0, 2]}),
        "overflow": (ValueError, r"one token per cell", {"shapes": [2**62, 4, 41, 1]}),
        "locations dims": (
            ValueError,
            r"sampling_locations must have shape",
            {"locations": locations[..., 0]},
        ),
        "three coordinates": (
            ValueError,
            r"sampling_locations must have shape",
            {"locations": torch.cat([locations, locations[..., :1]], -1)},
        ),
        "locations batch": (
            ValueError,
            r"batch=2",
            {"locations": locations[:1], "weights": weights[:1]},
        ),
        "locations heads": (
            ValueError,
            r"heads=3",
            {"locations": locations[:, :, :2], "weights": weights[:, :, :2]},
        ),
        "levels": (
            ValueError,
            r"levels=2",
            {"locations": locations[:, :, :, :1], "weights": weights[:, :, :, :1]},
        ),
        "no points": (
            ValueError,
            r"points >= 1",
            {"locations": locations[..., :0, :], "weights": weights[..., :0]},
        ),
        "weights": (ValueError, r"attention_weights must have", {"weights": weights[:, :3]}),
        "weights dims": (ValueError, r"attention_weights must have", {"weights": weights[..., 0]}),
        "integer value": (TypeError, r"value must be float32", {"value": value.long()}),
        "complex value": (TypeError, r"value must be float32", {"value": value.cfloat()}),
        "value narrower": (TypeError, r"(?i)must be .*(float|double)", {"value": value.float()}),
        "locations narrower": (
            TypeError,
            r"(?i)must be .*(float|double)",
            {"locations": locations.float()},
        ),
        "weights integer": (
            TypeError,
            r"(?i)must be .*(float|double)",
            {"weights": weights.long()},
        ),
        "value on meta": (ValueError, r"one device.*meta", {"value": value.to("meta")}),
        "weights on meta": (ValueError, r"one device.*meta", {"weights": weights.to("meta")}),
    }


WRONG_INPUTS = _wrong_inputs()


def _call(path: str, value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor) -> None:
    pairs = [tuple(shapes[i : i + 2]) for i in range(0, len(shapes), 2)]
    if path == "wrapper":
        ms_deform_attn(value, pairs, locations, weights)
    elif path == "reference":
        ms_deform_attn_reference(value, pairs, locations, weights)
    elif path == "operator":
        OP(value, shapes, locations, weights)
    else:
        grad_output = torch.ones(2, 4, 15, dtype=torch.float64)
        BACKWARD_OP(grad_output, value, shapes, locations, weights)


@pytest.mark.parametrize("name", WRONG_INPUTS)
@pytest.mark.parametrize("path", ["wrapper", "reference", "operator", "backward"])
def test_wrong_inputs_are_refused(name: str, path: str) -> None:
    error, message, changes = WRONG_INPUTS[name]
    value, locations, weights = make_inputs()
    arguments = {"value": value, "shapes": FLAT, "locations": locations, "weights": weights}
    with pytest.raises(error, match=message):
        _call(path, **(arguments | changes))


@pytest.mark.parametrize("name", [name for name in WRONG_INPUTS if "meta" not in name])
def test_wrong_inputs_are_refused_when_traced(name: str) -> None:
    error, message, changes = WRONG_INPUTS[name]
    value, locations, weights = make_inputs()
    arguments = {"value": value, "shapes": FLAT, "locations": locations, "weights": weights}
    value, shapes, locations, weights = (arguments | changes).values()
    with pytest.raises(error, match=message):
        OP(value.to("meta"), shapes, locations.to("meta"), weights.to("meta"))


@pytest.mark.parametrize("device_type", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("shape", "dtype", "elsewhere", "error", "message"),
    [
        ((2, 4, 14), torch.float64, False, ValueError, r"must have shape"),
        ((2, 60), torch.float64, False, ValueError, r"must have shape"),
        ((2, 4, 15), torch.float32, False, TypeError, r"dtype of value"),
        ((2, 4, 15), torch.float64, True, ValueError, r"one device"),
    ],
)
def test_wrong_grad_output_is_refused(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    elsewhere: bool,
    error: type[Exception],
    message: str,
    device_type: str,
) -> None:
    other = {"cpu": "meta", "meta": "cpu"}[device_type]
    grad_output = torch.ones(shape, dtype=dtype, device=other if elsewhere else device_type)
    value, locations, weights = make_inputs(device=device_type)
    with pytest.raises(error, match=message):
        BACKWARD_OP(grad_output, value, FLAT, locations, weights)


def test_shapes_given_otherwise_are_refused() -> None:
    value, locations, weights = make_inputs()
    with pytest.raises(TypeError, match="got a Tensor"):
        ms_deform_attn(value, torch.tensor(SHAPES), locations, weights)
    with pytest.raises(ValueError, match=r"pairs, got \[5, 7, 3, 2\]"):
        ms_deform_attn(value, FLAT, locations, weights)
    with pytest.raises(ValueError, match="pairs"):
        ms_deform_attn(value, [(5, 7, 1), (3, 2, 1)], locations, weights)


def test_sparse_tensors_are_refused() -> None:
    value, locations, weights = make_inputs()
    for sparse in (
        (value.to_sparse(), locations, weights),
        (value, locations.to_sparse(), weights),
        (value, locations, weights.to_sparse()),
    ):
        with pytest.raises(ValueError, match="must be dense"):
            OP(sparse[0], FLAT, *sparse[1:])
