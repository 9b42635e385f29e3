"""Curves on axes: as measured and smoothed, with their names at their ends."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from vitadapter.visualization.style import TEXT_SIZE

__all__ = ["End", "draw_smoothed", "label_ends", "log_scale"]

_SMOOTHED_SHARE = 0.08  # of a curve's points, which are averaged for each point
_LABEL_GAP = 1.25  # distance between two labels in font heights

End = tuple[float, float, str, str]
"""The last point (x, y) of a curve, its name, and its colour."""


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred moving average (N,) that leaves out values that are not finite.

    Towards both ends it is over fewer values, as many before as after: with values of one side
    alone, the curve of a loss would begin at one that was never measured.
    """
    places = np.arange(len(values))
    reach = np.minimum(round(len(values) * _SMOOTHED_SHARE / 2), places)
    reach = np.minimum(reach, places[::-1])
    first, behind = places - reach, places + reach + 1
    finite = np.isfinite(values)
    counts = np.cumsum(np.append(0, finite))
    sums = np.cumsum(np.append(0.0, np.where(finite, values, 0.0)))
    number = counts[behind] - counts[first]
    total = sums[behind] - sums[first]
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0)


def draw_smoothed(
    axes: Axes, x: np.ndarray, y: np.ndarray, color: str, width: float = 2.4
) -> np.ndarray:
    """Draws a faint curve and, more strongly, its smoothed form.

    Args:
        axes: to draw on.
        x: (N,), ascending.
        y: (N,); values that are not finite are left out.
        color: of both.
        width: of the smoothed curve, in points.

    Returns:
        (N,), the smoothed values.
    """
    smoothed = _smooth(y)
    axes.plot(x, y, color=color, alpha=0.25, linewidth=1.2)
    # A single point needs a marker, because it has no line.
    marker = "o" if len(x) == 1 else None
    axes.plot(x, smoothed, color=color, linewidth=width, marker=marker)
    return smoothed


def _spread(heights: Sequence[float], gap: float, top: float) -> np.ndarray:
    """Moves `heights` a little, so that they are at least `gap` apart and below `top`."""
    order = np.argsort(heights)
    spread = np.asarray(heights, dtype=float)[order]
    for i in range(1, len(spread)):
        spread[i] = max(spread[i], spread[i - 1] + gap)
    for i in reversed(range(len(spread))):
        spread[i] = min(spread[i], top - gap * (len(spread) - 1 - i))
    result = np.empty_like(spread)
    result[order] = spread
    return result


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Writes a name beside the end of each curve, so that no two overlap."""
    ends = [end for end in ends if np.isfinite(end[1])]
    assert isinstance(axes.figure, Figure)  # no subfigures are used
    axes.figure.draw_without_rendering()
    points_per_pixel = 72 / axes.figure.dpi
    heights = [axes.transData.transform(end[:2])[1] * points_per_pixel for end in ends]
    spread = _spread(heights, TEXT_SIZE * _LABEL_GAP, axes.bbox.y1 * points_per_pixel)
    for (x, y, name, color), height, new_height in zip(ends, heights, spread, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(8, new_height - height),
            textcoords="offset points",
            verticalalignment="center",
            color=color,
            fontweight="bold",
            annotation_clip=False,
        )


def log_scale(axes: Axes) -> None:
    """Makes the y axis logarithmic, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)
