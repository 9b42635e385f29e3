"""The colours, fonts and sizes of all figures and pictures, and the file that a figure becomes.

Everything is drawn on white, so that it looks the same on dark and on light pages.
"""

import colorsys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib import style
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

__all__ = [
    "CAPTION_SIZE",
    "COLORS",
    "FONT_FILE",
    "HEADING_SIZE",
    "KIND_COLORS",
    "NEUTRAL_COLOR",
    "NOTE_SIZE",
    "TEXT_COLOR",
    "TEXT_SIZE",
    "TITLE_SIZE",
    "class_color",
    "figure_file",
    "legend_label",
]

_DPI = 100
HEADING_SIZE, TITLE_SIZE, TEXT_SIZE, NOTE_SIZE = 18, 16, 13, 10
"""Heights of text in figures, in points: above a figure, above a panel, elsewhere, in crowds."""
CAPTION_SIZE = 14
"""Height of captions and legends of pictures, in pixels."""
FONT_FILE = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
"""Matplotlib's font, which has the letters of many languages and is always there."""
TEXT_COLOR = "#333333"
NEUTRAL_COLOR = "#9AA0A6"
"""Of what is neither a run nor a class nor a kind of result."""
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""The colours of Okabe and Ito, which colour-blind people can distinguish, without light yellow.

The first two are as different as any, since most figures have no more. A colour means one thing
in a figure: a run where several are compared, else a class, or a kind of result or of loss.
"""
KIND_COLORS = {"box": COLORS[0], "mask": COLORS[1]}
"""Of results and losses of boxes and of masks, where a figure shows a single run."""
# Colours of classes, beside COLORS: these hues in these saturations and values.
_HUES = 36
_SHADES = ((0.9, 1.0), (0.9, 0.55), (0.45, 1.0), (0.5, 0.75))
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": NEUTRAL_COLOR,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": TEXT_COLOR,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "axes.titlesize": TITLE_SIZE,
    "axes.titleweight": "bold",
    "figure.dpi": _DPI,
    "font.size": TEXT_SIZE,
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
    output: str | Path,
    width: int,
    height: int,
    title: str | None = None,
    *,
    crop: bool = False,
) -> Iterator[Figure]:
    """An empty figure in this style, which is written at the end of the `with` statement.

    Args:
        output: the .png file; its folder is made if necessary.
        width: in pixels.
        height: in pixels.
        title: a line above the figure.
        crop: leaves out what stays empty at the sides, so that the figure becomes smaller.

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
            figure.suptitle(title, fontsize=HEADING_SIZE, fontweight="bold")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(
            path,
            format="png",
            bbox_inches="tight" if crop else None,
            pil_kwargs={"optimize": True},
        )


def legend_label(name: str) -> str:
    """The label of a run in a legend, from which matplotlib leaves out what starts with "_"."""
    return f" {name}" if name.startswith("_") else name
