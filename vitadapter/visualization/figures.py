"""Figures of evaluations, and the common style and colours of all figures and pictures."""

import colorsys
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

__all__ = [
    "COLORS",
    "TEXT_COLOR",
    "class_color",
    "draw_confusion_matrix",
    "figure_file",
    "legend_label",
    "plot_errors",
    "plot_precision_recall",
]

_DPI = 100
TEXT_COLOR = "#333333"
# The colours of Okabe and Ito, which colour-blind people can distinguish, without light yellow.
COLORS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
# Colours of classes, beside COLORS: these hues in these saturations and values.
_HUES = 36
_SHADES = ((0.9, 1.0), (0.9, 0.55), (0.45, 1.0), (0.5, 0.75))
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": TEXT_COLOR,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "axes.titlesize": 16,
    "axes.titleweight": "bold",
    "figure.dpi": _DPI,
    "font.size": 13,
    "grid.color": "#E8E8E8",
    "lines.linewidth": 2.4,
    "lines.solid_capstyle": "round",
    "savefig.dpi": _DPI,
    "text.color": TEXT_COLOR,
    "text.parse_math": False,  # names may have dollar signs
    "xtick.color": TEXT_COLOR,
    "ytick.color": TEXT_COLOR,
}


@lru_cache(maxsize=1)
def _class_colors() -> list[tuple[float, float, float]]:
    """COLORS without grey, and then always the colour that is farthest from all before it."""
    hues = [hue / _HUES for hue in range(_HUES)]
    others = [colorsys.hsv_to_rgb(hue, *shade) for shade in _SHADES for hue in hues]
    colors = [to_rgb(color) for color in COLORS[:-1]] + others
    seen = cv2.cvtColor(np.array(colors, np.float32)[None], cv2.COLOR_RGB2LAB)[0]  # as by eyes
    chosen = list(range(len(COLORS) - 1))
    nearest = np.min([np.linalg.norm(seen - seen[i], axis=1) for i in chosen], axis=0)
    while len(chosen) < len(colors):
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(seen - seen[chosen[-1]], axis=1))
    return [colors[i] for i in chosen]


def class_color(number: int) -> tuple[float, float, float]:
    """The colour (RGB in 0..1) of a class, which is the same in every picture.

    Args:
        number: of the class, from 0. Colours repeat after 150 classes.
    """
    return _class_colors()[number % len(_class_colors())]


@contextmanager
def figure_file(
    output: str | Path, width: int, height: int, title: str | None = None
) -> Iterator[Figure]:
    """An empty figure in this style, which is written at the end of the `with` statement.

    Args:
        output: the .png file; its folder is made if necessary.
        width: in pixels.
        height: in pixels.
        title: a line above the figure.

    Raises:
        ValueError: `output` is not a .png file.
    """
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise ValueError(f"the figure must be written to a .png file, got {path}")
    with style.context(_STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.15, wspace=0.04)
        figure = Figure(figsize=(width / _DPI, height / _DPI), layout=layout)
        if title:
            figure.suptitle(title, fontsize=18, fontweight="bold")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", pil_kwargs={"optimize": True})


def legend_label(name: str) -> str:
    """The label of a run in a legend, from which matplotlib leaves out what starts with "_"."""
    return f" {name}" if name.startswith("_") else name


def _draw_precision_recall(
    axes: Axes, recall: np.ndarray, curves: Mapping[str, np.ndarray], title: str
) -> None:
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
            _draw_precision_recall(panel, recall_levels, curves, title)


def _draw_errors(axes: Axes, runs: Mapping[str, Mapping[str, float]], kinds: Sequence[str]) -> None:
    width = 0.8 / len(runs)
    for i, (name, costs) in enumerate(runs.items()):
        places = np.arange(len(kinds)) + (i - (len(runs) - 1) / 2) * width
        color = COLORS[i % len(COLORS)]
        heights = [costs[kind] for kind in kinds]
        bars = axes.bar(places, heights, width * 0.92, color=color, label=legend_label(name))
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=10)
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
