"""The notebook of the project runs from top to bottom, in an empty folder."""

import json
from pathlib import Path

import pytest
from run_fixtures import one_thread, restored_logging

__all__ = ["one_thread", "restored_logging"]


@pytest.mark.usefixtures("restored_logging")
def test_the_notebook_runs(repository: Path, tmp_path: Path, monkeypatch) -> None:
    path = repository / "projects" / "ViTAdapter" / "quickstart.ipynb"
    cells = json.loads(path.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells), "outputs are generated, not committed"
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["drawn"].get_image().shape == (128, 128, 3)
    assert (tmp_path / "output" / "notebook" / "model_final.pth").is_file()
    assert "AP" in names["results"]["bbox"]
