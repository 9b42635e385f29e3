import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from vitadapter.checkpoint.fitting import check_dense, check_finite, check_type, count_non_finite

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2)


@given(
    arrays("float32", array_shapes(min_side=0), elements=st.floats(width=32)),
    st.sampled_from(TYPES),
)
def test_every_value_that_is_not_finite_is_counted(array, dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(array).to(dtype)
    expected = sum(not math.isfinite(value) for value in tensor.double().flatten().tolist())
    assert count_non_finite(tensor) == expected


def test_numbers_that_are_always_finite() -> None:
    assert count_non_finite(torch.ones(3, dtype=torch.int64)) == 0
    assert count_non_finite(torch.empty(3, device="meta")) == 0


def test_names_and_counts_are_told() -> None:
    bad = torch.tensor([1.0, math.nan, math.inf])
    tensors = {f"{i}.weight": bad for i in range(5)} | {"good": torch.ones(2)}
    with pytest.raises(ValueError, match=r"^5 of .*infinite: 0\.weight \(2 of 3\), 1\..*, \.\.\.$"):
        check_finite(tensors)


@pytest.mark.parametrize(
    ("value", "dtype", "wanted"),
    [
        (1e300, torch.float64, torch.float32),
        (1e6, torch.float32, torch.float16),
        (-1e39, torch.float64, torch.bfloat16),
    ],
)
def test_what_overflows_in_the_model(value: float, dtype: torch.dtype, wanted: torch.dtype) -> None:
    tensors = {"a": torch.tensor([1.0, value], dtype=dtype)}
    check_finite(tensors)
    check_finite(tensors, {"a": torch.zeros(2, dtype=dtype)})
    with pytest.raises(ValueError, match=r"in the model's precision: a \(1 of 2\)"):
        check_finite(tensors, {"a": torch.zeros(2, dtype=wanted)})


def test_a_mask_of_the_model_may_be_infinite() -> None:
    mask = torch.tensor([0.0, -math.inf])
    check_finite({"mask": mask}, {"mask": mask.clone()})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.eye(2).to_sparse_csr(), "sparse"),
        (torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8), "quantised"),
        (torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "nested"),
        (torch.empty(2, device="meta"), "without values"),
    ],
)
def test_only_dense_tensors(tensor: Tensor, kind: str) -> None:
    with pytest.raises(ValueError, match=f"b is {kind}, but only dense tensors can be loaded"):
        check_dense({"a": torch.ones(2), "b": tensor}, allow_meta=False)


def test_a_model_without_values_takes_others() -> None:
    check_dense({"a": torch.empty(2, device="meta")}, allow_meta=True)


@pytest.mark.parametrize(
    ("values", "dtype", "wanted", "is_right"),
    [
        ([1.5], torch.float16, torch.float32, True),
        ([1.0], torch.float64, torch.float16, True),
        ([1], torch.int8, torch.float32, False),
        ([True], torch.bool, torch.float32, False),
        ([1j], torch.complex64, torch.float32, False),
        ([1j], torch.complex64, torch.int64, False),
        ([7], torch.int32, torch.int64, True),
        ([7.0], torch.float16, torch.int64, True),  # counts of a model that was halved
        ([7.5], torch.float32, torch.int64, False),
        ([math.nan], torch.float32, torch.int64, False),
        ([300], torch.int64, torch.uint8, False),
    ],
)
def test_kinds_of_numbers(
    values: list[float], dtype: torch.dtype, wanted: torch.dtype, is_right: bool
) -> None:
    tensor, other = torch.tensor(values, dtype=dtype), torch.zeros(1, dtype=wanted)
    if is_right:
        check_type("a", tensor, other)
        return
    with pytest.raises(ValueError, match=rf"a is {dtype}, the model has {wanted}"):
        check_type("a", tensor, other)
