"""Names of runs in figures."""

from pathlib import Path

import pytest

from vitadapter.visualization import figures


@pytest.mark.parametrize("name", ["_a", "$a_$", "a"])
def test_names_are_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    with figures.figure_file(tmp_path / "a.png", 300, 200) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], label=figures.legend_label(name))
        axes.set_title(name)
        (label,) = axes.legend().get_texts()
    assert label.get_text().strip() == name
    assert (tmp_path / "a.png").stat().st_size
