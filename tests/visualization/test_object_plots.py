from collections import Counter
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from PIL import Image

from vitadapter.data.object_sizes import ModelScales, ObjectSizes
from vitadapter.visualization import object_plots
from vitadapter.visualization.object_plots import plot_objects
from vitadapter.visualization.overlays import Palette

SCALES = ModelScales((4, 8), (16, 32), (0.5, 1))


@pytest.mark.parametrize(
    ("sides", "scales"),
    [([(10.0, 20.0)], ModelScales()), ([(0.0, 5.0), (1e-3, 5.0), (900.0, 3.0)], SCALES)],
)
def test_boxes(tmp_path: Path, sides: list, scales: ModelScales) -> None:
    sizes = ObjectSizes(None, [len(sides), 0, 400], sides, Counter({0: 2, 250: 1}))
    plot_objects(sizes, scales, Palette(["$a$"]), tmp_path / "x.png", "title")
    assert Image.open(tmp_path / "x.png").size == (1400, 900)


def test_strides_and_anchors_are_marked(tmp_path: Path, monkeypatch) -> None:
    marked = []
    monkeypatch.setattr(
        object_plots, "_draw_marks", lambda axes, values, *_: marked.append(tuple(values))
    )
    monkeypatch.setattr(Axes, "legend", lambda *_, **__: None)
    sizes = ObjectSizes(None, [1], [(10.0, 20.0)], Counter({0: 1}))
    plot_objects(sizes, SCALES, Palette(), tmp_path / "x.png", "title")
    assert marked == [SCALES.strides, SCALES.anchors, SCALES.ratios]


@pytest.mark.parametrize("sides", [[], [(0.0, 5.0)]])
def test_without_boxes_there_are_two_panels(tmp_path: Path, sides: list) -> None:
    sizes = ObjectSizes(None, [3], sides, Counter({n: n for n in range(30)}))
    plot_objects(sizes, SCALES, Palette(), tmp_path / "x.png", "title")
    assert Image.open(tmp_path / "x.png").size == (1400, 500)


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no annotated image"):
        plot_objects(ObjectSizes(), SCALES, Palette(), tmp_path / "x.png", "title")
