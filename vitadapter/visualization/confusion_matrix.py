"""Draws the confusion matrix of semantic segmentation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["draw_confusion_matrix"]

# Limits of the picture: more classes have no names, longer names are cut, and only a few classes
# have numbers in their cells.
_MAX_NAMED = 200
_MAX_LETTERS = 24
_MAX_WITH_NUMBERS = 20


def _label(name: str) -> str:
    if len(name) > _MAX_LETTERS:
        name = f"{name[: _MAX_LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
    return name.replace("$", "\\$")


def draw_confusion_matrix(confusion: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Draws the share of each true class that was predicted as each class.

    Args:
        confusion: pixels (K, K) by predicted and true class.
        class_names: K names.
        path: of the picture.
    """
    by_truth = confusion.T.astype(float)
    shares = by_truth / np.maximum(by_truth.sum(axis=1, keepdims=True), 1)
    count = len(class_names)
    side = float(np.clip(2.5 + 0.3 * count, 5, 20))  # inches
    figure = Figure(figsize=(side, side), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if count <= _MAX_NAMED:
        font = float(np.clip(55 * (side - 2.5) / count, 4, 10))  # points; an inch has 72
        labels = [_label(name) for name in class_names]
        axes.set_xticks(range(count), labels, rotation=90, fontsize=font)
        axes.set_yticks(range(count), labels, fontsize=font)
    if count <= _MAX_WITH_NUMBERS:
        for row, column in np.argwhere(shares >= 0.005):
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if share > 0.5 else "black",
            )
    figure.savefig(path, bbox_inches="tight")
