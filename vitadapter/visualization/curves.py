"""Draws training runs: the losses of one, and comparisons of several."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from vitadapter.visualization.figures import COLORS, TEXT_COLOR, figure_file
from vitadapter.visualization.metrics_file import RunMetrics, RunSummary, summarize

__all__ = ["plot_comparison", "plot_convergence", "plot_loss_against_time", "plot_training"]

_SMOOTHED_SHARE = 0.08  # of a curve's points, which are averaged for each point
_SAME_TIME = 0.05  # training times that differ by less count as the same
_LABEL_GAP = 1.25  # distance between two labels in font heights
_STAGE_NUMBER = re.compile(r"_(stage)?\d+$")


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


def _draw_curve(
    axes: Axes, x: np.ndarray, y: np.ndarray, color: str, width: float = 2.4
) -> np.ndarray:
    """Draws a faint curve and, more strongly, its smoothed form, which is returned."""
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


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes a name beside the end of each curve; `ends` are (x, y, name, color)."""
    ends = [end for end in ends if np.isfinite(end[1])]
    assert isinstance(axes.figure, Figure)  # no subfigures are used
    axes.figure.draw_without_rendering()
    points_per_pixel = 72 / axes.figure.dpi
    size = mpl.rcParams["font.size"]
    heights = [axes.transData.transform(end[:2])[1] * points_per_pixel for end in ends]
    spread = _spread(heights, size * _LABEL_GAP, axes.bbox.y1 * points_per_pixel)
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


def _log_scale(axes: Axes) -> None:
    """Makes the y axis logarithmic, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)


def _components(metrics: RunMetrics) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The losses whose sum is the total. Numbered stages of one loss are added up."""
    summed: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in metrics.names():
        if not name.startswith("loss_"):
            continue
        iterations, values = metrics.curve(name)
        family = _STAGE_NUMBER.sub("", name)
        if family in summed and np.array_equal(summed[family][0], iterations):
            values = values + summed[family][1]
        elif family in summed:
            family = name
        summed[family] = iterations, values
    return summed


def _draw_losses(axes: Axes, metrics: RunMetrics) -> None:
    _log_scale(axes)
    curves = {"total_loss": metrics.curve("total_loss"), **_components(metrics)}
    ends = []
    for i, (name, (iterations, values)) in enumerate(curves.items()):
        total = name == "total_loss"
        color = TEXT_COLOR if total else COLORS[(i - 1) % len(COLORS)]
        smoothed = _draw_curve(axes, iterations, values, color, 3.2 if total else 2.0)
        label = name.removeprefix("loss_").replace("_", " ")
        ends.append((iterations[-1], smoothed[-1], label, color))
    axes.set_title("Training losses")
    axes.margins(x=0.01)
    _label_ends(axes, ends)


def _draw_learning_rate(axes: Axes, metrics: RunMetrics) -> None:
    axes.plot(*metrics.curve("lr"), color=COLORS[0])
    axes.set_title("Learning rate")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.ticklabel_format(axis="y", scilimits=(-3, 3), useMathText=True)


def plot_training(metrics: RunMetrics, output: str | Path) -> None:
    """Draws the total loss, its components and the learning rate of a run, 1200x800 pixels.

    Args:
        metrics: those of the run.
        output: the .png file to write.

    Raises:
        ValueError: `output` is not a .png file.
    """
    has_rate = len(metrics.curve("lr")[0]) > 0
    with figure_file(output, 1200, 800) as figure:
        rows = (3, 1) if has_rate else (1,)
        panels = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=rows)[:, 0]
        if has_rate:
            _draw_learning_rate(panels[1], metrics)
        _draw_losses(panels[0], metrics)
        panels[-1].set_xlabel("iteration")


def _draw_runs(
    axes: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], x_label: str, smoothed: bool
) -> None:
    """Draws a curve (x, y) of each run, with the name of the run at the end."""
    ends = []
    for i, (name, (x, y)) in enumerate(curves.items()):
        color = COLORS[i % len(COLORS)]
        if smoothed:
            y = _draw_curve(axes, x, y, color)
        else:
            axes.plot(x, y, color=color, marker="o")
        ends.append((x[-1], y[-1], name, color))
    axes.set_xlim(left=0)
    axes.set_xlabel(x_label)
    _label_ends(axes, ends)


def _draw_against_time(axes: Axes, runs: Mapping[str, RunMetrics]) -> None:
    curves = {name: (run.minutes(), run.curve("total_loss")[1]) for name, run in runs.items()}
    _draw_runs(axes, curves, "training time (minutes)", smoothed=True)
    axes.set_title("Training loss")


def _check_runs(runs: Mapping[str, RunMetrics]) -> None:
    if not runs:
        raise ValueError("there must be at least one run to plot, got none")


def plot_loss_against_time(runs: Mapping[str, RunMetrics], output: str | Path) -> None:
    """Draws the total loss of several runs against their training time, 1200x700 pixels.

    Args:
        runs: metrics by name.
        output: the .png file to write.

    Raises:
        ValueError: there is no run, one has no "time", or `output` is not a .png file.
    """
    _check_runs(runs)
    with figure_file(output, 1200, 700) as figure:
        _draw_against_time(figure.subplots(), runs)


def _bars_title(summaries: Sequence[RunSummary]) -> str:
    """Includes the training time if it is the same for all, so that the comparison is fair."""
    minutes = [s.minutes for s in summaries]
    if max(minutes) > (1 + _SAME_TIME) * min(minutes):
        return "AP at the end of training"
    return f"AP after {np.mean(minutes):.1f} minutes of training"


def _draw_bars(axes: Axes, summaries: Sequence[RunSummary]) -> None:
    """Draws box and mask AP of each run side by side, in the colour of its loss curve."""
    kinds = [("box", [s.box_ap for s in summaries], 1.0)]
    if any(s.mask_ap is not None for s in summaries):
        kinds.append(("mask", [s.mask_ap for s in summaries], 0.55))
    width = 0.8 / len(kinds)
    ticks = []
    for k, (kind, values, opacity) in enumerate(kinds):
        for i, value in enumerate(values):
            x = i + (k - (len(kinds) - 1) / 2) * width
            ticks.append((x, kind))
            color = COLORS[i % len(COLORS)]
            axes.bar(x, value or 0, width * 0.92, color=color, alpha=opacity)
            text = "n/a" if value is None else f"{value:.1f}"
            axes.annotate(
                text,
                (x, value or 0),
                xytext=(0, 4),
                textcoords="offset points",
                horizontalalignment="center",
                fontsize=15,
                fontweight="bold",
            )
    axes.set_xticks(*zip(*ticks, strict=True))
    axes.tick_params(length=0)
    axes.margins(y=0.12)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.set_title(_bars_title(summaries))
    for i, summary in enumerate(summaries):
        axes.annotate(
            summary.name,
            (i, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -30),
            textcoords="offset points",
            horizontalalignment="center",
            verticalalignment="top",
            color=COLORS[i % len(COLORS)],
            fontsize=15,
            fontweight="bold",
        )


def plot_comparison(
    runs: Mapping[str, RunMetrics], output: str | Path, title: str | None = None
) -> None:
    """Draws the final box and mask AP of runs next to their losses, 1400x600 pixels.

    Args:
        runs: metrics by name.
        output: the .png file to write.
        title: a line above both.

    Raises:
        ValueError: there is no run, one has no "time", or `output` is not a .png file.
    """
    _check_runs(runs)
    with figure_file(output, 1400, 600, title) as figure:
        left, right = figure.subplots(1, 2)
        _draw_bars(left, [summarize(name, metrics) for name, metrics in runs.items()])
        _draw_against_time(right, runs)


def _draw_metric(axes: Axes, runs: Mapping[str, RunMetrics], metric: str, smoothed: bool) -> None:
    curves = {name: run.curve(metric) for name, run in runs.items()}
    for name, (iterations, _) in curves.items():
        if len(iterations) == 0:
            raise ValueError(f"the run {name} has no {metric} in its metrics.json")
    _draw_runs(axes, curves, "iteration", smoothed)


def plot_convergence(
    runs: Mapping[str, RunMetrics], output: str | Path, title: str | None = None
) -> None:
    """Draws loss and box AP of runs against their iterations, 1600x600 pixels.

    Args:
        runs: metrics by name, with evaluations during training (`train.eval_period`).
        output: the .png file to write.
        title: a line above both.

    Raises:
        ValueError: there is no run, one was never evaluated, or `output` is not a .png file.
    """
    _check_runs(runs)
    with figure_file(output, 1600, 600, title) as figure:
        left, right = figure.subplots(1, 2)
        _draw_metric(left, runs, "total_loss", smoothed=True)
        left.set_title("Training loss")
        _draw_metric(right, runs, "bbox/AP", smoothed=False)
        right.set_title("Box AP")
        right.set_ylim(bottom=0)
