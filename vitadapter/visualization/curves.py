"""Draws training runs: the losses and results of one, and comparisons of several."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator

from vitadapter.visualization.lines import End, draw_smoothed, label_ends, log_scale
from vitadapter.visualization.metrics_file import RunMetrics, RunSummary, summarize
from vitadapter.visualization.style import (
    COLORS,
    KIND_COLORS,
    TEXT_COLOR,
    TITLE_SIZE,
    class_color,
    figure_file,
)

__all__ = ["plot_comparison", "plot_convergence", "plot_loss_against_time", "plot_training"]

_SAME_TIME = 0.05  # training times that differ by less count as the same
_STAGE_NUMBER = re.compile(r"_(stage)?\d+$")
# What is shown of evaluations: the name and the colour of each scalar.
_RESULTS = {
    "bbox/AP": ("box AP", KIND_COLORS["box"]),
    "segm/AP": ("mask AP", KIND_COLORS["mask"]),
    "sem_seg/mIoU": ("mIoU", COLORS[2]),
    "panoptic_seg/PQ": ("PQ", COLORS[4]),
}
_LOSSES_OF_KINDS = {"loss_box_reg": KIND_COLORS["box"], "loss_mask": KIND_COLORS["mask"]}


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


def _results(metrics: RunMetrics) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Iterations and values of the results that the run has."""
    curves = {name: metrics.curve(name) for name in _RESULTS}
    return {name: curve for name, curve in curves.items() if len(curve[0])}


def _loss_colors(names: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """A colour for each loss that no other curve of the figure has."""
    free = [color for color in map(to_hex, map(class_color, range(150))) if color not in taken]
    others = [name for name in names if name not in _LOSSES_OF_KINDS]
    return {**_LOSSES_OF_KINDS, **dict(zip(others, free, strict=False))}


def _draw_losses(axes: Axes, metrics: RunMetrics) -> None:
    log_scale(axes)
    curves = {"total_loss": metrics.curve("total_loss"), **_components(metrics)}
    taken = [color.lower() for _, color in _RESULTS.values()]
    colors = _loss_colors([name for name in curves if name != "total_loss"], taken)
    ends: list[End] = []
    for name, (iterations, values) in curves.items():
        total = name == "total_loss"
        color = TEXT_COLOR if total else colors[name]
        smoothed = draw_smoothed(axes, iterations, values, color, 3.2 if total else 2.0)
        label = name.removeprefix("loss_").replace("_", " ")
        ends.append((iterations[-1], smoothed[-1], label, color))
    axes.set_title("Training losses")
    axes.margins(x=0.01)
    label_ends(axes, ends)


def _draw_learning_rate(axes: Axes, metrics: RunMetrics) -> None:
    axes.plot(*metrics.curve("lr"), color=TEXT_COLOR)
    axes.set_title("Learning rate")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter("{x:g}")


def _draw_results(
    axes: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str
) -> None:
    """Draws the results (x, y) of a run, in percent, with the last of each."""
    ends: list[End] = []
    for name, (x, y) in curves.items():
        label, color = _RESULTS[name]
        axes.plot(x, y, color=color, marker="o")
        ends.append((x[-1], y[-1], f"{label} {y[-1]:.1f}", color))
    axes.set_title(title)
    highest = max((float(np.nanmax(y, initial=0)) for _, y in curves.values()), default=0)
    axes.set_ylim(0, 1.1 * highest or 100)
    label_ends(axes, ends)


def plot_training(metrics: RunMetrics, output: str | Path) -> None:
    """Draws the losses, the results of evaluations and the learning rate of a run.

    The picture has 1200x800 pixels, and 250 more rows if there are results.

    Args:
        metrics: those of the run.
        output: the .png file to write.

    Raises:
        ValueError: `output` is not a .png file.
    """
    results = _results(metrics)
    has_rate = len(metrics.curve("lr")[0]) > 0
    heights = [3.0, *[1.4] * bool(results), *[1.0] * has_rate]
    with figure_file(output, 1200, 1050 if results else 800) as figure:
        panels = figure.subplots(
            len(heights), 1, sharex=True, squeeze=False, height_ratios=heights
        )[:, 0]
        if has_rate:
            _draw_learning_rate(panels[-1], metrics)
        if results:
            _draw_results(panels[1], results, "Evaluations")
        _draw_losses(panels[0], metrics)
        panels[-1].set_xlabel("iteration")


def _draw_runs(
    axes: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], x_label: str, smoothed: bool
) -> None:
    """Draws a curve (x, y) of each run, with the name of the run at the end."""
    ends: list[End] = []
    for i, (name, (x, y)) in enumerate(curves.items()):
        color = COLORS[i % len(COLORS)]
        if smoothed:
            y = draw_smoothed(axes, x, y, color)
        else:
            axes.plot(x, y, color=color, marker="o")
        ends.append((x[-1], y[-1], name, color))
    axes.set_xlim(left=0)
    axes.set_xlabel(x_label)
    label_ends(axes, ends)


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
                fontsize=TITLE_SIZE,
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
            fontsize=TITLE_SIZE,
            fontweight="bold",
        )


def _draw_results_against_time(axes: Axes, metrics: RunMetrics) -> None:
    minutes, trained = metrics.minutes(), metrics.curve("total_loss")[0]
    results = _results(metrics)
    curves = {name: (np.interp(at, trained, minutes), y) for name, (at, y) in results.items()}
    title = "Evaluations" if results else "Evaluations (there was none)"
    axes.set_xlim(0, float(minutes[-1]) or None)
    axes.set_xlabel("training time (minutes)")
    _draw_results(axes, curves, title)


def _draw_loss_of_run(axes: Axes, metrics: RunMetrics) -> None:
    draw_smoothed(axes, metrics.minutes(), metrics.curve("total_loss")[1], TEXT_COLOR)
    axes.set_title("Training loss")
    axes.set_xlim(left=0)
    axes.set_xlabel("training time (minutes)")


def plot_comparison(
    runs: Mapping[str, RunMetrics], output: str | Path, title: str | None = None
) -> None:
    """Draws the final box and mask AP of runs next to their losses, 1400x600 pixels.

    Of a single run, all evaluations during its training are drawn instead of the last one.

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
        if len(runs) == 1:
            (metrics,) = runs.values()
            _draw_results_against_time(left, metrics)
            _draw_loss_of_run(right, metrics)
        else:
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
