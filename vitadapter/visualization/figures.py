"""Figures of evaluations."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb

from vitadapter.visualization.style import (
    COLORS,
    NOTE_SIZE,
    TEXT_COLOR,
    TEXT_SIZE,
    figure_file,
    legend_label,
)

__all__ = ["draw_confusion_matrix", "plot_errors", "plot_precision_recall"]

_LIGHTEST = 0.7  # share of white in the lightest shade


def _shades(count: int) -> list[str]:
    """Shades of one colour, from full to light."""
    full = np.array(to_rgb(COLORS[0]))
    shares = np.linspace(0, _LIGHTEST, count)
    return [to_hex(full + share * (1 - full)) for share in shares]


def _draw_precision_recall(
    axes: Axes,
    recall: np.ndarray,
    curves: Mapping[str, np.ndarray],
    title: str,
    colors: Sequence[str],
) -> None:
    for (name, precision), color in zip(curves.items(), colors, strict=False):
        mean = float(precision.mean())
        label = f"{name}: no objects" if math.isnan(mean) else f"{name}: AP {100 * mean:.1f}"
        axes.plot(recall, precision, color=color, label=label)
    axes.set_title(title)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="best")


def plot_precision_recall(
    recall_levels: np.ndarray,
    panels: Mapping[str, Mapping[str, np.ndarray]],
    output: str | Path,
) -> None:
    """Draws precision against recall in panels side by side, 1400x650 pixels in all.

    Args:
        recall_levels: (R,).
        panels: for each title, the curves, which have a precision (R,) for each name, NaN if there
            are no objects. Those of the first panel are in the order of a threshold, and have
            shades of one colour.
        output: the .png file to write.

    Raises:
        ValueError: `output` is not a .png file.
    """
    with figure_file(output, 1400, 650) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for number, (panel, (title, curves)) in enumerate(zip(axes, panels.items(), strict=True)):
            colors = COLORS if number else _shades(len(curves))
            _draw_precision_recall(panel, recall_levels, curves, title, colors)


def _draw_errors(axes: Axes, runs: Mapping[str, Mapping[str, float]], kinds: Sequence[str]) -> None:
    width = 0.8 / len(runs)
    for i, (name, costs) in enumerate(runs.items()):
        places = np.arange(len(kinds)) + (i - (len(runs) - 1) / 2) * width
        color = COLORS[i % len(COLORS)]
        heights = [costs[kind] for kind in kinds]
        bars = axes.bar(places, heights, width * 0.92, color=color, label=legend_label(name))
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=NOTE_SIZE)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.tick_params(length=0)
    axes.margins(x=0.02, y=0.1)


def plot_errors(
    runs: Mapping[str, Mapping[str, float]], groups: Sequence[Sequence[str]], output: str | Path
) -> None:
    """Draws what each kind of error costs each run as bars, 1400x600 pixels.

    Args:
        runs: for the name of each run, the cost of each kind of error.
        groups: kinds of errors that share an axis, for each panel.
        output: the .png file to write.

    Raises:
        ValueError: `output` is not a .png file.
    """
    with figure_file(output, 1400, 600) as figure:
        widths = [len(kinds) for kinds in groups]
        panels = figure.subplots(1, len(groups), squeeze=False, width_ratios=widths)[0]
        for axes, kinds in zip(panels, groups, strict=True):
            _draw_errors(axes, runs, kinds)
        panels[0].set_title("AP50 lost to each kind of error")
        panels[0].legend(frameon=False)


# Limits of the picture: more classes have no names, longer names are cut, and only a few classes
# have numbers in their cells.
_MAX_NAMED = 200
_MAX_LETTERS = 24
_MAX_WITH_NUMBERS = 20
_SHARES = LinearSegmentedColormap.from_list("shares", ("white", COLORS[0]))


def _label(name: str) -> str:
    if len(name) > _MAX_LETTERS:
        return f"{name[: _MAX_LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
    return name


def _write_shares(axes: Axes, shares: np.ndarray) -> None:
    for row, column in np.argwhere(shares >= 0.005):
        share = shares[row, column]
        axes.text(
            column,
            row,
            f"{100 * share:.0f}",
            horizontalalignment="center",
            verticalalignment="center",
            fontsize=NOTE_SIZE,
            color="white" if share > 0.5 else TEXT_COLOR,
        )


def draw_confusion_matrix(confusion: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Draws the share of each true class that was predicted as each class.

    Args:
        confusion: pixels (K, K) by predicted and true class.
        class_names: K names.
        path: of the picture, a .png file.
    """
    by_truth = confusion.T.astype(float)
    shares = by_truth / np.maximum(by_truth.sum(axis=1, keepdims=True), 1)
    count = len(class_names)
    side = int(np.clip(300 + 36 * count, 600, 2400))  # pixels
    with figure_file(path, side, side, crop=True) as figure:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap=_SHARES, vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.grid(visible=False)
        if count <= _MAX_NAMED:
            size = float(np.clip(0.66 * (side - 300) / count, 5, TEXT_SIZE))
            labels = [_label(name) for name in class_names]
            axes.set_xticks(range(count), labels, rotation=90, fontsize=size)
            axes.set_yticks(range(count), labels, fontsize=size)
        if count <= _MAX_WITH_NUMBERS:
            _write_shares(axes, shares)
