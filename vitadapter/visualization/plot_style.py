"""The common style of the figures of this package."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

__all__ = ["COLORS", "TEXT_COLOR", "figure_file"]

_DPI = 100
TEXT_COLOR = "#333333"
# The colours of Okabe and Ito, which colour-blind people can distinguish, without light yellow.
COLORS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
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
    "xtick.color": TEXT_COLOR,
    "ytick.color": TEXT_COLOR,
}


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
