"""The smoothed form of curves."""

import numpy as np

from vitadapter.visualization import lines


def test_smoothing_keeps_lines_and_skips_nan() -> None:
    line = np.linspace(0, 99, 100)
    smoothed = lines._smooth(line)
    np.testing.assert_allclose(smoothed, line)
    loss = np.exp(-line / 10)
    ends = lines._smooth(loss)[[0, -1]]
    np.testing.assert_allclose(ends, loss[[0, -1]])  # no value is invented where the curve begins
    noisy = line + np.random.default_rng(0).normal(0, 5, 100)
    assert np.abs(lines._smooth(noisy) - line).mean() < 0.6 * np.abs(noisy - line).mean()
    line[50] = np.nan
    assert np.isfinite(lines._smooth(line)).all()
    np.testing.assert_array_equal(lines._smooth(np.array([3.0, 1.0])), [3, 1])
