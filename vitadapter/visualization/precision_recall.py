"""Draws precision-recall curves of detections."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from vitadapter.visualization.plot_style import COLORS, figure_file

__all__ = ["plot_precision_recall"]


def _draw(axes: Axes, recall: np.ndarray, curves: Mapping[str, np.ndarray], title: str) -> None:
    for (name, precision), color in zip(curves.items(), COLORS, strict=False):
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
            are no objects.
        output: the .png file to write.

    Raises:
        ValueError: `output` is not a .png file.
    """
    with figure_file(output, 1400, 650) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, (title, curves) in zip(axes, panels.items(), strict=True):
            _draw(panel, recall_levels, curves, title)
