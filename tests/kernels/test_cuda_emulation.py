"""The CUDA operators, host code and kernels, on an emulated device, against PyTorch in float64."""

import math
import mmap
from pathlib import Path

import pytest
import torch
from cuda_emulation_cases import (
    PYRAMID,
    Case,
    assert_close,
    check,
    descending,
    deterministic,
    gradients,
    reference_gradients,
)
from torch._ops import _OpNamespace

from vitadapter.ops import ms_deform_attn_reference

HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        dict(head_dim=16),
        dict(head_dim=16, shapes=PYRAMID, queries=70, heads=1),
        dict(head_dim=32, shapes=PYRAMID),
        dict(head_dim=32, shapes=(*PYRAMID, (2, 2)), queries=33, heads=1),
        dict(head_dim=32, shapes=PYRAMID[:2], points=3, queries=1),
        dict(head_dim=64, shapes=PYRAMID, heads=1),
        dict(head_dim=64, shapes=PYRAMID, points=1),
        dict(head_dim=1, shapes=PYRAMID, points=5),
        dict(head_dim=5, shapes=PYRAMID[:2], points=17, queries=3, heads=1),
        dict(head_dim=67, points=2, queries=5, images=3, heads=1),
    ],
    ids=lambda sizes: "-".join(f"{k}={v}" for k, v in sizes.items() if k != "shapes"),
)
def test_equals_reference(
    emulated: _OpNamespace, dtype: torch.dtype, fused: bool, sizes: dict
) -> None:
    check(emulated, Case(dtype=dtype, fused=fused, **sizes))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("head_dim", [7, 32])
def test_reference_points_broadcast(
    emulated: _OpNamespace, images: int, levels: int, head_dim: int
) -> None:
    case = Case(
        fused=True,
        head_dim=head_dim,
        shapes=PYRAMID,
        reference_images=images,
        reference_levels=levels,
    )
    check(emulated, case)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("head_dim", [3, 16, 32])
def test_order_of_threads_does_not_matter(
    library: Path, emulated: _OpNamespace, fused: bool, head_dim: int
) -> None:
    case = Case(fused=fused, head_dim=head_dim, shapes=PYRAMID, queries=40)
    with descending(library):
        check(emulated, case)
        with deterministic():
            first = gradients(emulated, case)
    with deterministic():
        assert all(map(torch.equal, first, gradients(emulated, case)))


@pytest.mark.parametrize("far", [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38, 9.0, -9.0])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("fused", [False, True])
def test_far_locations_sample_nothing(
    emulated: _OpNamespace, far: float, axis: int, fused: bool
) -> None:
    head_dim = 5 if axis == 0 else 32
    case = Case(fused=fused, head_dim=head_dim, shapes=PYRAMID, reach=0.5)
    case.taps[0][:, 1, ..., axis] = far
    _, expected_value, *_ = reference_gradients(case)
    output, grad_value, *grad_taps = gradients(emulated, case)
    assert output[:, 1].eq(0).all()
    assert all(gradient[:, 1].eq(0).all() for gradient in grad_taps)
    assert all(gradient.isfinite().all() for gradient in grad_taps)
    assert_close(grad_value, expected_value, "grad_value")


@pytest.mark.parametrize("head_dim", [5, 32])
def test_weight_of_a_tap_outside_does_not_count(emulated: _OpNamespace, head_dim: int) -> None:
    """Not even NaN; a tap inside hands on what its weight is."""
    case = Case(head_dim=head_dim, shapes=PYRAMID)
    locations, weights = case.taps
    locations[:, :, :, 0, 0] = 7.0
    weights[:, :, :, 0, 0] = 0.0
    expected = reference_gradients(case)
    for weight in (math.nan, math.inf):
        weights[:, :, :, 0, 0] = weight
        check(emulated, case, expected)
    locations[:, 1, :, 0, 0] = 0.5
    assert gradients(emulated, case)[0][:, 1].isfinite().logical_not().all()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("head_dim", [5, 32])
def test_tap_outside_gets_no_gradient(emulated: _OpNamespace, head_dim: int, fused: bool) -> None:
    """Not even where the gradient of the output is NaN."""
    case = Case(head_dim=head_dim, shapes=PYRAMID, fused=fused)
    case.taps[0][:, 1, ..., 0] = 70.0
    case.grad_output[:, 1] = math.nan
    _, grad_value, *grad_taps = gradients(emulated, case)
    assert grad_value.isfinite().all()
    assert all(gradient[:, 1].eq(0).all() for gradient in grad_taps)


def test_nothing_outside_a_map_is_touched(emulated: _OpNamespace) -> None:
    """NaN in the other level, head and image does not reach a query's output."""
    case = Case(shapes=((4, 6), (4, 6)), queries=20, head_dim=16)
    case.taps[1][:, :, :, 1] = 0
    case.taps[0][:, :, :, 1] = 5.0
    expected = reference_gradients(case)[0]
    case.value[:, 24:] = math.nan
    case.value[1, :, 1] = math.nan
    output = gradients(emulated, case)[0]
    output, expected = (tensor.unflatten(-1, (2, 16)) for tensor in (output, expected))
    assert output[1, :, 1].isnan().any()
    assert_close(output[0], expected[0], "first image")
    assert_close(output[1, :, 0], expected[1, :, 0], "other head")


def test_on_borders_and_pixel_centres(emulated: _OpNamespace) -> None:
    places = torch.tensor([-0.125, 0.0, 0.125, 0.5, 0.875, 1.0, 1.125])
    grid = torch.cartesian_prod(places, places).reshape(1, 49, 1, 1, 1, 2)
    for head_dim in (16, 3):
        case = Case(images=1, heads=1, head_dim=head_dim, queries=49, points=1, shapes=((4, 4),))
        case.taps[0] = grid.clone()
        check(emulated, case)


def test_infinite_and_nan_logits_stay_in_their_query(emulated: _OpNamespace) -> None:
    case = Case(fused=True, shapes=PYRAMID)
    case.taps[2][:, 1, :, 0, 0] = math.nan
    case.taps[2][:, 2, :, 0, 0] = -math.inf
    expected = reference_gradients(case)[0]
    output = gradients(emulated, case)[0]
    assert output[:, 1].isnan().all()
    assert_close(output[:, 2:], expected[:, 2:], "output")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("head_dim", [3, 32])
def test_more_levels_than_kernel_parameters_hold(
    emulated: _OpNamespace, fused: bool, head_dim: int
) -> None:
    shapes = ((2, 1), (1, 2), (1, 1)) * 50
    check(emulated, Case(fused=fused, head_dim=head_dim, shapes=shapes, points=1, queries=3))


def test_level_of_more_numbers_than_32_bits_count(emulated: _OpNamespace) -> None:
    """Memory that nobody writes to costs nothing, so the map may be of 4 GiB."""
    height, width, channels = 2**14, 2**13, 17
    numbers = height * width * channels
    assert numbers > 2**31
    with mmap.mmap(-1, 2 * numbers) as memory:
        value = torch.frombuffer(memory, dtype=torch.float16)
        value = value.view(1, height * width, 1, channels)
        value[0, -1] = torch.arange(17.0)
        place = torch.tensor([1 - 0.5 / width, 1 - 0.5 / height]).view(1, 1, 1, 1, 1, 2)
        output = emulated.ms_deform_attn(value, [height, width], place, torch.ones(1, 1, 1, 1, 1))
        del value
    torch.testing.assert_close(output.flatten(), torch.arange(17.0).half())


def test_more_images_than_a_grid_holds(emulated: _OpNamespace) -> None:
    case = Case(images=65_537, heads=1, head_dim=3, queries=1, points=1, shapes=((1, 2),))
    output = emulated.ms_deform_attn(case.value, [1, 2], *case.taps)
    expected = ms_deform_attn_reference(case.value, [(1, 2)], *case.taps)
    torch.testing.assert_close(output, expected)
