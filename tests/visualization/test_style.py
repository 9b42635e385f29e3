"""One place of colours, fonts and sizes; names of runs in figures."""

import re
from pathlib import Path

import pytest

from vitadapter.visualization import style

CONSTANT = re.compile(r"\"#[0-9A-Fa-f]{3,8}\"|fontsize=[\d.]+|ImageFont\.truetype\((?!FONT_FILE)")


def test_colours_and_sizes_are_in_one_place(repository: Path) -> None:
    sources = sorted((repository / "vitadapter" / "visualization").glob("*.py"))
    assert CONSTANT.search((repository / "vitadapter/visualization/style.py").read_text())
    found = {path.name: CONSTANT.findall(path.read_text()) for path in sources}
    del found["style.py"]
    assert {name: constants for name, constants in found.items() if constants} == {}


def test_the_report_has_the_colours_of_figures(repository: Path) -> None:
    css = (repository / "vitadapter" / "report" / "report.css").read_text()
    colors = {color.lower() for color in style.COLORS}
    for name in ("accent", "right", "wrong"):
        first = re.search(rf"--{name}: (#\w+)", css)  # on white; brighter on dark
        assert first is not None
        assert first[1] in colors


def test_figures_are_opaque(tmp_path: Path) -> None:
    """Dark text must not lie on a dark page."""
    with style.figure_file(tmp_path / "a.png", 300, 200) as figure:
        figure.subplots()
        assert figure.get_facecolor() == (1, 1, 1, 1)


@pytest.mark.parametrize("name", ["_a", "$a_$", "a"])
def test_names_are_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    with style.figure_file(tmp_path / "a.png", 300, 200) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], label=style.legend_label(name))
        axes.set_title(name)
        (label,) = axes.legend().get_texts()
    assert label.get_text().strip() == name
    assert (tmp_path / "a.png").stat().st_size
