"""Precision-recall curves of detections."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from vitadapter.evaluation.detection_figures import SIZES, DetectionFigures
from vitadapter.evaluation.plot_style import COLORS, STYLE, new_figure, save_figure

__all__ = ["plot_precision_recall"]

_IOUS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
_TASKS = {"bbox": "Boxes", "segm": "Masks"}


def _draw(
    axes: Axes, recall: np.ndarray, curves: Sequence[tuple[str, np.ndarray]], title: str
) -> None:
    for (name, precision), color in zip(curves, COLORS, strict=False):
        mean = float(precision.mean())
        label = f"{name}: no objects" if math.isnan(mean) else f"{name}: AP {100 * mean:.1f}"
        axes.plot(recall, precision, color=color, label=label)
    axes.set_title(title)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="best")


def plot_precision_recall(figures: DetectionFigures, output: str | Path) -> None:
    """Draws precision against recall by IoU threshold, and by size at IoU 0.5, 1400x650 pixels.

    Curves are means over the classes.

    Args:
        figures: of one task.
        output: the .png file to write.

    Raises:
        ValueError: `output` is not a .png file.
    """
    by_iou = [(f"IoU {iou:.2f}", figures.curve(iou)) for iou in _IOUS]
    by_size = [(size, figures.curve(0.5, size)) for size in SIZES]
    with mpl.rc_context(STYLE):
        figure = new_figure(1400, 650)
        left, right = figure.subplots(1, 2)
        _draw(left, figures.recall_levels, by_iou, f"{_TASKS[figures.task]} by IoU threshold")
        _draw(right, figures.recall_levels, by_size, "By size of the objects, at IoU 0.50")
        save_figure(figure, output)
