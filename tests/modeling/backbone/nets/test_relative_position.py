import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline
from timm.models.beit import gen_relative_position_index

from vitadapter.modeling.backbone.nets.relative_position import (
    relative_position_bias,
    resize_relative_positions,
    spline_matrix,
)

# Source points, targets, ratio and last source point of the official loader, as
# reference/checkpoint_layouts.md section 1.4 lists them for BEiT's table of 27 x 27 offsets.
OFFICIAL = [
    (27, 111, 1.2180692, 54.99990),
    (27, 79, 1.1685036, 39.00008),
    (27, 63, 1.1349178, 31.00018),
    (27, 59, 1.1250559, 28.99995),
    (27, 15, 1.0100009, 13.809),
]


def _points(number: int, ratio: float) -> np.ndarray:
    """0, +-1, +-(1 + q), ... summed one by one."""
    positive, total, step = [], 0.0, 1.0
    for _ in range(number // 2):
        total += step
        step *= ratio
        positive.append(total)
    return np.array([-p for p in reversed(positive)] + [0.0, *positive])


@pytest.mark.parametrize("grid", [(14, 14), (3, 5), (1, 4), (1, 1)])
def test_bias_is_that_of_timms_index(grid: tuple[int, int]) -> None:
    h, w = grid
    table = torch.randn(3, 2 * h - 1, 2 * w - 1)
    index = gen_relative_position_index(grid)[1:, 1:]
    expected = table.flatten(1)[:, index.flatten()].view(3, h * w, h * w)
    torch.testing.assert_close(relative_position_bias(table), expected, rtol=0, atol=0)


def test_gradient_of_the_bias_is_that_of_timms_index() -> None:
    table = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 12, 12, dtype=torch.float64)
    index = gen_relative_position_index((3, 4))[1:, 1:].flatten()
    expected = (table.flatten(1)[:, index] * weight.flatten(1)).sum()
    (expected,) = torch.autograd.grad(expected, table)
    (found,) = torch.autograd.grad((relative_position_bias(table) * weight).sum(), table)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("source", "target", "ratio", "last"), OFFICIAL)
def test_spline_is_fitpacks_through_the_official_points(
    source: int, target: int, ratio: float, last: float
) -> None:
    points = _points(source, ratio)
    assert points[-1] == pytest.approx(last, abs=1e-3)
    values = np.random.default_rng(0).normal(size=(source, source))
    targets = np.arange(target) - target // 2
    expected = RectBivariateSpline(points, points, values, kx=3, ky=3, s=0)(targets, targets)
    matrix = spline_matrix(source, target, lowest_ratio=1.01)
    # The listed ratios have eight digits.
    np.testing.assert_allclose(matrix @ values @ matrix.T, expected, rtol=0, atol=1e-4)


def test_spline_of_few_points() -> None:
    np.testing.assert_array_equal(spline_matrix(1, 5), np.ones((5, 1)))
    # Three points, no ratio to choose: a parabola through -1, 0, 1, clamped beyond.
    np.testing.assert_allclose(
        spline_matrix(3, 5), [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]], atol=1e-12
    )


@pytest.mark.parametrize(("source", "target"), [(5, 7), (27, 29), (27, 63), (63, 65)])
def test_spline_keeps_constants_the_middle_and_the_ends(source: int, target: int) -> None:
    matrix = spline_matrix(source, target)
    np.testing.assert_allclose(matrix.sum(1), 1.0, atol=1e-12)
    values = np.random.default_rng(1).normal(size=source)
    resized = matrix @ values
    # Neighbours of the middle keep their offset of one token; the ends meet.
    middle = target // 2
    expected = values[source // 2 - 1 : source // 2 + 2]
    np.testing.assert_allclose(resized[middle - 1 : middle + 2], expected, atol=1e-12)
    np.testing.assert_allclose(resized[[0, -1]], values[[0, -1]], atol=1e-4)


def test_a_spline_to_nearly_the_same_size_changes_little() -> None:
    values = np.sin(np.linspace(-2, 2, 63))
    resized = spline_matrix(63, 65) @ values
    assert np.abs(resized[1:-1] - values).max() < 0.08  # one token's difference is 0.065


def test_resizing_to_the_own_size_is_the_identity() -> None:
    table = torch.randn(2, 5, 7)
    assert resize_relative_positions(table, (5, 7)) is table


def test_a_smaller_grid_keeps_the_values_of_its_offsets() -> None:
    table = torch.randn(2, 9, 7)
    bias = relative_position_bias(table).view(2, 5, 4, 5, 4)
    smaller = relative_position_bias(resize_relative_positions(table, (5, 3)))
    torch.testing.assert_close(smaller.view(2, 3, 2, 3, 2), bias[:, :3, :2, :3, :2], rtol=0, atol=0)


def test_a_larger_grid_takes_the_spline_of_each_axis() -> None:
    table = torch.randn(2, 9, 7, dtype=torch.float64)
    resized = resize_relative_positions(table, (5, 11))
    expected = np.einsum("xj,hyj->hyx", spline_matrix(7, 11), table[:, 2:7].numpy())
    np.testing.assert_allclose(resized.numpy(), expected, atol=1e-12)
    resized = resize_relative_positions(table, (13, 11))
    rows = np.einsum("yi,hij->hyj", spline_matrix(9, 13), table.numpy())
    expected = np.einsum("xj,hyj->hyx", spline_matrix(7, 11), rows)
    np.testing.assert_allclose(resized.numpy(), expected, atol=1e-12)


def test_resizing_is_differentiable() -> None:
    table = torch.randn(2, 7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: resize_relative_positions(t, (9, 3)), table)
