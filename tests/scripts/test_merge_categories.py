"""scripts/merge_categories.py: a COCO json with one category, as pycocotools reads it."""

import json
import runpy
from pathlib import Path

import pytest
from pycocotools.coco import COCO

CONTENT = {
    "info": {"version": "7"},
    "images": [{"id": 3, "file_name": "a.jpg", "width": 8, "height": 6}],
    "categories": [{"id": 2, "name": "cat"}, {"id": 9, "name": "dog"}],
    "annotations": [
        {"id": 0, "image_id": 3, "category_id": 9, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0},
        {"id": 0, "image_id": 3, "category_id": 2, "bbox": [1, 1, 3, 2], "area": 6, "iscrowd": 1},
    ],
}


def run(repository: Path, *arguments: str) -> str | None:
    """The error line, if there is one."""
    main = runpy.run_path(str(repository / "scripts" / "merge_categories.py"))["main"]
    try:
        return main(arguments)
    except SystemExit as error:
        return str(error)


def test_every_object_has_the_one_category(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps(CONTENT))
    out = tmp_path / "out.json"
    assert run(repository, str(tmp_path / "in.json"), str(out), "--name", "thing") is None
    coco = COCO(str(out))
    assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "thing"}]
    assert sorted(coco.getAnnIds(catIds=[1])) == [1, 2]
    for before, after in zip(CONTENT["annotations"], coco.dataset["annotations"], strict=True):
        assert after == before | {"category_id": 1, "id": after["id"]}
    assert coco.dataset["images"] == CONTENT["images"]


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}', None])
def test_what_is_no_coco_json_is_an_error_line(
    repository: Path, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "in.json").write_text(content)
    error = run(repository, str(tmp_path / "in.json"), str(tmp_path / "out.json"))
    assert error.startswith("error: ")
    assert "in.json" in error
    assert not (tmp_path / "out.json").exists()


def test_an_existing_file_is_kept(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_text(json.dumps(CONTENT))
    assert run(repository, str(path), str(path)).startswith("error: ")
    assert json.loads(path.read_text()) == CONTENT
