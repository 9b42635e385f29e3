"""How the figures of this package look."""

from pathlib import Path

from matplotlib.figure import Figure

__all__ = ["COLORS", "STYLE", "TEXT_COLOR", "new_figure", "save_figure"]

_DPI = 100
TEXT_COLOR = "#333333"
# Okabe and Ito's colours, which the colour-blind tell apart; the light yellow is left out.
COLORS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
STYLE = {
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


def new_figure(width: int, height: int) -> Figure:
    """An empty figure of this size in pixels; to be drawn in `mpl.rc_context(STYLE)`."""
    figure = Figure(figsize=(width / _DPI, height / _DPI), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.2, h_pad=0.15, wspace=0.04)
    return figure


def save_figure(figure: Figure, output: str | Path) -> None:
    """Writes a figure.

    Args:
        figure: to write.
        output: the .png file; its folder is made.

    Raises:
        ValueError: `output` is not a .png file.
    """
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise ValueError(f"the figure must be written to a .png file, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", pil_kwargs={"optimize": True})
