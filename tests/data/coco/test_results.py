import json
from pathlib import Path

import pytest
from coco_samples import make_content, write_coco

from vitadapter.data.coco.annotations import parse_coco
from vitadapter.data.coco.results import coco_api, load_annotations, load_results
from vitadapter.evaluation.detection_analysis import analyze_results

RESULT = {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}


def write_json(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_predictions_are_grouped_by_image(tmp_path: Path) -> None:
    content = make_content(images=3)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]
    json_file, _ = write_coco(tmp_path, content)
    results = [RESULT, {**RESULT, "image_id": 3}, {**RESULT, "score": 0.25}]
    data = load_results(json_file, write_json(tmp_path / "results.json", results))
    assert data.predictions == {1: [results[0], results[2]], 2: [], 3: [results[1]]}
    assert data.annotated_ids() == [1, 3]


def test_pycocotools_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    load_annotations(write_coco(tmp_path, make_content())[0])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ("[", r"results\.json is not json"),
        ({"image_id": 1}, r"results\.json holds a dict"),
        ([1], r"result 0 of .*must be an object with .*'score'.*, got 1"),
        ([RESULT, {"score": 1}], r"result 1 of .*, got \['score'\]"),
        ([{**RESULT, "image_id": 77}], "image_id one that the annotation file lists, got 77"),
        ([{**RESULT, "category_id": 9}], "category_id one that the annotation file lists, got 9"),
        ([{**RESULT, "bbox": [1, 2, 3]}], r"box of 4 finite numbers, got \[1, 2, 3\]"),
        ([{**RESULT, "bbox": [1, 2, 3, float("nan")]}], "finite numbers"),
        ([{**RESULT, "bbox": [1, 2, 3, "4"]}], r"finite numbers, got \[1, 2, 3, '4'\]"),
        ([{**RESULT, "bbox": 5}], "box of 4 finite numbers, got 5"),
        (
            [{**RESULT, "segmentation": {"size": [64, 64], "counts": "0P"}}],
            "as the counts of an RLE, got '0P'",
        ),
        (
            [{**RESULT, "segmentation": {"size": [64, 64], "counts": [5]}}],
            "result 0 of .* add up to 5 pixels, not to the 4096",
        ),
        ([{**RESULT, "segmentation": [[1, 2, 3]] * 2 + [5]}], "must have flat lists"),
        ([{**RESULT, "score": "high"}], "finite number as score, got 'high'"),
        ([{**RESULT, "image_id": [1]}], r"image_id one that the annotation file lists, got \[1\]"),
    ],
)
def test_bad_results_are_refused(tmp_path: Path, results: object, message: str) -> None:
    json_file, _ = write_coco(tmp_path, make_content())
    with pytest.raises(ValueError, match=message):
        load_results(json_file, write_json(tmp_path / "results.json", results))


@pytest.mark.parametrize("field", ["score", "bbox"])
@pytest.mark.parametrize("value", [10**400, 1e300, float("nan"), -float("inf")])
def test_numbers_that_cannot_be_drawn_are_refused(tmp_path: Path, field: str, value: float) -> None:
    json_file, _ = write_coco(tmp_path, make_content())
    result = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    result[field] = value if field == "score" else [1, 2, 3, value]
    with pytest.raises(ValueError, match=r"result 0 of .*finite number"):
        load_results(json_file, write_json(tmp_path / "results.json", [result]))


def test_polygons_may_be_predicted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """pycocotools itself takes those of annotations alone."""
    content = make_content(masks="polygon")
    json_file, _ = write_coco(tmp_path, content)
    keys = ("image_id", "category_id", "bbox", "segmentation")
    results = [{key: a[key] for key in keys} | {"score": 0.5} for a in content["annotations"]]
    tasks, _ = analyze_results(json_file, write_json(tmp_path / "results.json", results))
    assert [figures.task for figures in tasks] == ["bbox", "segm"]
    assert tasks[1].summary()["AP"] == pytest.approx(100)
    assert "results.json" not in caplog.text
    results[2]["segmentation"] = [[1, 2, float("nan"), 4, 5, 6]]
    load_results(json_file, write_json(tmp_path / "results.json", results))
    assert "dropped polygons that are not finite" in caplog.text
    assert "1, namely result 2 of" in caplog.text


def test_missing_files_are_refused(tmp_path: Path) -> None:
    json_file, _ = write_coco(tmp_path, make_content())
    with pytest.raises(ValueError, match=r"results file must be .*nothing\.json does not exist"):
        load_results(json_file, tmp_path / "nothing.json")
    with pytest.raises(ValueError, match=r"annotation file must be .*nothing\.json does not"):
        load_results(tmp_path / "nothing.json", json_file)


@pytest.mark.parametrize("missing", ["images", "categories", "annotations"])
def test_incomplete_annotations_are_refused(tmp_path: Path, missing: str) -> None:
    content = make_content()
    del content[missing]
    with pytest.raises(ValueError, match=rf"x\.json has no {missing}"):
        load_annotations(write_json(tmp_path / "x.json", content))


def test_annotations_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    content = make_content()
    content["annotations"][1]["category_id"] = 5
    with pytest.raises(ValueError, match=r"annotations\[1\] .*category_id 5"):
        load_annotations(write_json(tmp_path / "x.json", content))
    content = make_content()
    del content["annotations"][3]["bbox"]
    with pytest.raises(ValueError, match=r"annotations\[3\] .* as bbox, got None"):
        load_annotations(write_json(tmp_path / "x.json", content))
    content = make_content()
    content["annotations"][3]["bbox"] = 5
    with pytest.raises(ValueError, match=r"annotations\[3\] .* got 5"):
        load_annotations(write_json(tmp_path / "x.json", content))
    with pytest.raises(ValueError, match=r"x\.json holds a list instead"):
        load_annotations(write_json(tmp_path / "x.json", [1]))


@pytest.mark.parametrize(("part", "key"), [("image", "file_name"), ("category", "name")])
def test_entries_without_a_name_are_refused(tmp_path: Path, part: str, key: str) -> None:
    content = make_content()
    del content[{"image": "images", "category": "categories"}[part]][1][key]
    with pytest.raises(ValueError, match=rf"x\.json: {part} 2 .*must have a text as {key}"):
        load_annotations(write_json(tmp_path / "x.json", content))


def test_ids_begin_at_1_and_categories_keep_theirs() -> None:
    content = make_content()
    for annotation in content["annotations"]:
        annotation.update(id=0, category_id=annotation["category_id"] * 10)
    for category in content["categories"]:
        category["id"] *= 10
    api = coco_api(parse_coco(content, "a.json"))
    assert list(api.anns) == list(range(1, 9))
    for annotation, original in zip(api.anns.values(), content["annotations"], strict=True):
        assert {**original, "id": annotation["id"]} == {k: annotation[k] for k in original}


def test_masks_leave_out_what_has_none(caplog) -> None:
    content = make_content()
    content["annotations"][1]["segmentation"] = []
    data = parse_coco(content, "a.json")
    assert len(coco_api(data).anns) == 8
    assert len(coco_api(data, masks=True).anns) == 7
    assert "a.json: dropped annotations without a mask: 1, namely that with the box" in caplog.text
    with pytest.raises(ValueError, match=r"none of the 8 annotations of a\.json has a mask"):
        coco_api(parse_coco(make_content(masks="none"), "a.json"), masks=True)
