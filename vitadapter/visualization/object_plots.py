"""Draws how many objects images have, and their sizes beside strides and anchors of a model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from vitadapter.data.object_sizes import ModelScales, ObjectSizes
from vitadapter.visualization.overlays import Palette
from vitadapter.visualization.style import (
    NEUTRAL_COLOR,
    NOTE_SIZE,
    TEXT_COLOR,
    class_color,
    figure_file,
)

__all__ = ["plot_objects"]

_MOST_CLASSES = 20
_MOST_BINS = 40
_NAME_LETTERS = 22


def _draw_counts(axes: Axes, counts: Sequence[int], what: str) -> None:
    largest = max(counts)
    step = largest // _MOST_BINS + 1
    edges = np.arange(0, largest + 2 * step, step) - 0.5
    axes.hist(counts, bins=edges.tolist(), color=NEUTRAL_COLOR, rwidth=0.9)
    axes.set_title(f"{what.capitalize()} per image")
    axes.set_xlabel(what)
    axes.set_ylabel("images")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_marks(axes: Axes, values: Sequence[float], name: str, style: str) -> None:
    for index, value in enumerate(values):
        label = f"{name} {', '.join(f'{v:g}' for v in values)}" if index == 0 else None
        axes.axvline(value, color=TEXT_COLOR, linestyle=style, linewidth=1.6, label=label)


def _log_histogram(axes: Axes, values: np.ndarray, marks: Sequence[float]) -> None:
    """A histogram over a logarithmic axis that reaches to all marks."""
    every = np.concatenate([values[values > 0], np.asarray(marks, dtype=float)])
    low, high = np.log2(every.min()) - 0.3, np.log2(every.max()) + 0.3
    edges = (2 ** np.linspace(low, high, _MOST_BINS)).tolist()
    axes.hist(values, bins=edges, color=NEUTRAL_COLOR)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("objects")


def _draw_sizes(axes: Axes, sizes: np.ndarray, scales: ModelScales) -> None:
    _log_histogram(axes, sizes, (*scales.strides, *scales.anchors))
    _draw_marks(axes, scales.strides, "strides", "-")
    _draw_marks(axes, scales.anchors, "anchors", ":")
    axes.set_title("Size of the boxes")
    axes.set_xlabel("square root of the area, in pixels of the model's input")
    if scales.strides or scales.anchors:
        axes.legend(fontsize=NOTE_SIZE, loc="upper right", framealpha=1)


def _draw_ratios(axes: Axes, sides: np.ndarray, scales: ModelScales) -> None:
    usable = sides[(sides > 0).all(axis=1)]
    _log_histogram(axes, usable[:, 1] / usable[:, 0], scales.ratios or (1.0,))
    _draw_marks(axes, scales.ratios, "anchors", ":")
    axes.set_title("Shape of the boxes")
    axes.set_xlabel("height / width")
    if scales.ratios:
        axes.legend(fontsize=NOTE_SIZE, loc="upper right", framealpha=1)


def _draw_classes(axes: Axes, sizes: ObjectSizes, palette: Palette, unit: str) -> None:
    common = sizes.classes.most_common(_MOST_CLASSES)
    names = [palette.name(number) for number, _ in common]
    short = [n if len(n) <= _NAME_LETTERS else f"{n[: _NAME_LETTERS - 1]}…" for n in names]
    places = range(len(common))
    axes.barh(places, [count for _, count in common], color=[class_color(n) for n, _ in common])
    axes.set_yticks(places, short, fontsize=NOTE_SIZE)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    left_out = len(sizes.classes) - len(common)
    axes.set_title(f"Classes ({left_out} rarer ones left out)" if left_out else "Classes")
    axes.set_xlabel(unit)


def plot_objects(
    sizes: ObjectSizes, scales: ModelScales, palette: Palette, output: str | Path, title: str
) -> None:
    """Draws objects per image, their sizes and shapes, and the classes.

    Args:
        sizes: of at least one image.
        scales: of the model.
        palette: of the classes.
        output: the .png file to write.
        title: a line above the figure.

    Raises:
        ValueError: there is no annotated image, or `output` is not a .png file.
    """
    if not sizes.per_image:
        raise ValueError("there is no annotated image to draw the objects of")
    sides = np.asarray(sizes.sides, dtype=float).reshape(-1, 2)
    has_boxes = bool((sides > 0).all(axis=1).any())
    with figure_file(output, 1400, 900 if has_boxes else 500, title) as figure:
        panels = figure.subplots(2 if has_boxes else 1, 2, squeeze=False)
        if has_boxes:
            _draw_sizes(panels[1, 0], sizes.sizes, scales)
            _draw_ratios(panels[1, 1], sides, scales)
        _draw_counts(panels[0, 0], sizes.per_image, "objects" if has_boxes else "classes")
        unit = "objects" if sizes.num_things is None else "segments, things and stuff"
        _draw_classes(panels[0, 1], sizes, palette, unit if has_boxes else "pixels")
