"""A colour means one thing in a figure."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from vitadapter.visualization import figures


def colors_of(axes: Axes) -> Mapping[str, tuple[float, ...]]:
    return {str(line.get_label()): to_rgb(line.get_color()) for line in axes.lines}


def test_a_colour_of_precision_recall_curves_means_one_thing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    recall, ones = np.linspace(0, 1, 5), np.ones(5)
    panels = {
        "by IoU": {f"IoU 0.{i}": ones for i in range(5, 10)},
        "by size": dict.fromkeys(("all", "small", "medium", "large"), ones),
    }
    figures.plot_precision_recall(recall, panels, tmp_path / "x.png")
    by_iou, by_size = map(colors_of, saved[0].axes)
    assert len(set(by_iou.values())) == 5
    assert len(set(by_size.values())) == 4
    # All sizes at the first threshold are one curve, drawn twice in one colour.
    assert set(by_iou.values()) & set(by_size.values()) == {next(iter(by_size.values()))}


@pytest.mark.parametrize("count", [1, 2, 30])
def test_confusion_matrix_fills_its_picture(tmp_path: Path, count: int) -> None:
    names = ["$a$", *(f"class {i}" for i in range(1, count))]
    figures.draw_confusion_matrix(np.eye(count), names, tmp_path / "x.png")
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    margin = 40
    for side in (pixels[:margin], pixels[-margin:], pixels[:, :margin], pixels[:, -margin:]):
        assert (side < 200).any()
