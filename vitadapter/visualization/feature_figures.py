"""Figures of feature maps: the maps themselves, and their Fourier spectra."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from vitadapter.visualization.style import COLORS, TEXT_SIZE, figure_file, legend_label

__all__ = ["draw_feature_maps", "plot_spectra"]

_COLORMAP = "viridis"
_PANEL = 260  # pixels
_GAP = 35  # pixels between panels
_LABELS = 50  # pixels for the names of the runs
_SHOWN = (1, 99)  # percentiles of a map that become the ends of the colour map


def _bare(axes: Axes, title: str | None, label: str | None) -> None:
    """Removes the ticks. The first row names the columns, and the first column the rows."""
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if title:
        axes.set_title(title, fontsize=TEXT_SIZE, pad=8)
    if label:
        axes.set_ylabel(label, fontsize=TEXT_SIZE, fontweight="bold")


def draw_feature_maps(
    image: np.ndarray, runs: Mapping[str, Mapping[int, np.ndarray]], output: str | Path
) -> None:
    """Draws an image and its feature maps, with a row for each run.

    Args:
        image: (H, W, 3) uint8 RGB.
        runs: for the name of each run, a map (h, w) for each stride; the same strides for all. The
            colours of each map go from its smallest to its largest values.
        output: the .png file to write.

    Raises:
        ValueError: `output` is not a .png file.
    """
    strides = list(next(iter(runs.values())))
    columns = 1 + len(strides)
    aspect = float(np.clip(image.shape[0] / image.shape[1], 0.25, 4))
    row = round((_PANEL - _GAP) * aspect) + _GAP
    with figure_file(output, _LABELS + columns * _PANEL, 60 + len(runs) * row) as figure:
        panels = figure.subplots(len(runs), columns, squeeze=False)
        for number, (name, maps) in enumerate(runs.items()):
            first = number == 0
            panels[number, 0].imshow(image)
            _bare(panels[number, 0], "image" if first else None, name)
            for axes, stride in zip(panels[number, 1:], strides, strict=True):
                low, high = np.percentile(maps[stride], _SHOWN)
                axes.imshow(maps[stride], cmap=_COLORMAP, vmin=low, vmax=high)
                _bare(axes, f"stride {stride}" if first else None, None)


def _draw_curves(
    axes: Axes, runs: Mapping[str, Mapping[int, np.ndarray]], stride: int, colors: Sequence[str]
) -> None:
    for (name, spectra), color in zip(runs.items(), colors, strict=True):
        curve = spectra[stride].diagonal()[len(spectra[stride]) // 2 :]
        axes.plot(np.linspace(0, 1, len(curve)), curve, color=color, label=legend_label(name))
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "π/2", "π"])
    axes.set_xlabel("frequency")
    axes.set_title(f"Stride {stride}")


def plot_spectra(runs: Mapping[str, Mapping[int, np.ndarray]], output: str | Path) -> None:
    """Draws relative log amplitudes along the diagonal, and the whole spectra below.

    Args:
        runs: for the name of each run and each stride, log amplitudes relative to the zero
            frequency, for vertical and horizontal frequencies (N, N) from -pi to pi, N odd.
        output: the .png file to write.

    Raises:
        ValueError: `output` is not a .png file.
    """
    strides = list(next(iter(runs.values())))
    colors = [COLORS[i % len(COLORS)] for i in range(len(runs))]
    width = max(2, len(strides)) * 340
    with figure_file(output, width, 420 + 260 * len(runs)) as figure:
        rows = figure.subfigures(2, 1, squeeze=False, height_ratios=[420, 260 * len(runs)])
        top, below = rows[:, 0]
        curves = top.subplots(1, len(strides), squeeze=False, sharey=True)[0]
        for axes, stride in zip(curves, strides, strict=True):
            _draw_curves(axes, runs, stride, colors)
        curves[0].set_ylabel("relative log amplitude")
        curves[0].legend(frameon=False)
        below.suptitle(
            "Spectra from -π to π in both directions", fontsize=TEXT_SIZE, fontweight="bold"
        )
        panels = below.subplots(len(runs), len(strides), squeeze=False)
        for column, stride in enumerate(strides):
            found = [spectra[stride] for spectra in runs.values()]
            low, high = min(map(np.min, found)), max(map(np.max, found))
            for row, (name, spectrum) in enumerate(zip(runs, found, strict=True)):
                axes = panels[row, column]
                drawn = axes.imshow(spectrum, cmap=_COLORMAP, vmin=low, vmax=high)
                _bare(axes, None, name if column == 0 else None)
            below.colorbar(drawn, ax=panels[:, column], shrink=0.7)
