"""Tables and curves of detections, against pycocotools run on one class at a time."""

import contextlib
import csv
import io
import json
import logging
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from coco_samples import make_content
from detection_samples import make_annotations, make_detections
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitadapter.data.coco.annotations import parse_coco
from vitadapter.data.coco.results import coco_api
from vitadapter.evaluation.detection_analysis import (
    COLUMNS,
    SIZES,
    DetectionFigures,
    analyze_results,
    warn_of_uncounted,
)

# Where pycocotools' summary has the figures of COLUMNS.
STATS = dict(zip(COLUMNS, (0, 1, 2, 3, 4, 5, 8), strict=True))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Annotations and results."""
    folder = tmp_path_factory.mktemp("analysis")
    content = make_annotations()
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "results").mkdir()
    results = folder / "results" / "coco_instances_results.json"
    results.write_text(json.dumps(make_detections(content)))
    return folder / "instances.json", results


@pytest.fixture(scope="module")
def analysis(files: tuple[Path, Path]) -> tuple[list[DetectionFigures], list[Path]]:
    return analyze_results(*files)


def _reference(files: tuple[Path, Path], task: str, categories: list[int] | None) -> np.ndarray:
    """pycocotools' own summary in percent, NaN for -1."""
    results = json.loads(files[1].read_text())
    if task == "segm":
        for result in results:
            del result["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(str(files[0]))
        coco_eval = COCOeval(api, api.loadRes(results), task)
        if categories is not None:
            coco_eval.params.catIds = categories
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    return np.where(coco_eval.stats < 0, np.nan, 100 * coco_eval.stats)


@pytest.mark.parametrize("index", [0, 1], ids=["bbox", "segm"])
def test_figures_are_those_of_pycocotools(
    analysis: tuple[list[DetectionFigures], list[Path]], files: tuple[Path, Path], index: int
) -> None:
    figures = analysis[0][index]
    assert figures.task == ("bbox", "segm")[index]
    content = json.loads(files[0].read_text())
    all_classes, *classes = figures.rows()
    for (name, count, summary), category in zip(classes, content["categories"], strict=True):
        stats = _reference(files, figures.task, [category["id"]])
        assert name == category["name"]
        objects = [a for a in content["annotations"] if a["category_id"] == category["id"]]
        assert count == sum(not a["iscrowd"] for a in objects)
        for column, position in STATS.items():
            assert summary[column] == pytest.approx(stats[position], nan_ok=True), column
    assert math.isnan(summary["AP"])  # no object of the last class
    assert count == 0
    stats = _reference(files, figures.task, None)
    for column, position in STATS.items():
        assert 0 < all_classes[2][column] < 100
        assert all_classes[2][column] == pytest.approx(stats[position]), column
    assert all_classes[1] == sum(count for _, count, _ in classes)


def test_curves_hold_the_average_precision(
    analysis: tuple[list[DetectionFigures], list[Path]],
) -> None:
    for figures in analysis[0]:
        summary = figures.summary()
        assert 100 * figures.curve(0.5).mean() == pytest.approx(summary["AP50"])
        assert 100 * figures.curve(0.75).mean() == pytest.approx(summary["AP75"])
        for size, column in zip(SIZES[1:], ("APs", "APm", "APl"), strict=True):
            means = [figures.curve(iou, size).mean() for iou in figures.iou_thresholds]
            assert 100 * np.mean(means) == pytest.approx(summary[column])
        assert (np.diff(figures.curve(0.5)) <= 1e-12).all()


def test_files_lie_next_to_the_results(
    analysis: tuple[list[DetectionFigures], list[Path]], files: tuple[Path, Path]
) -> None:
    tasks, written = analysis
    assert {path.parent for path in written} == {files[1].parent}
    assert [path.name for path in written] == [
        "per_class.md",
        "per_class.csv",
        "precision_recall_bbox.png",
        "precision_recall_segm.png",
    ]
    for path in written[2:]:
        with Image.open(path) as picture:
            assert picture.size == (1400, 650)
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
    assert written[0].read_text() == "\n\n".join(task.table() for task in tasks) + "\n"
    last = written[0].read_text().splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")] == ["name40", "0", *"-" * 7]
    with written[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (1 + 4)
    row = next(row for row in rows if (row["task"], row["class"]) == ("segm", "name5"))
    figures = tasks[1].summary(1)
    assert {column: float(row[column]) for column in COLUMNS} == figures
    assert rows[-1]["AP"] == ""


def test_boxes_alone(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a detector without masks; crowds and areas that the annotations leave out."""
    results, content = (json.loads(path.read_text()) for path in reversed(files))
    for result in results:
        del result["segmentation"]
    content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
    for annotation in content["annotations"]:
        del annotation["segmentation"], annotation["iscrowd"], annotation["area"]
    json_file, results_file = tmp_path / "a.json", tmp_path / "r.json"
    json_file.write_text(json.dumps(content))
    results_file.write_text(json.dumps(results))
    tasks, written = analyze_results(json_file, results_file, tmp_path / "new" / "folder")
    assert [figures.task for figures in tasks] == ["bbox"]
    assert tasks[0].summary()["AP"] > 5
    assert written[-1] == tmp_path / "new" / "folder" / "precision_recall_bbox.png"
    assert written[-1].is_file()


def test_nothing_to_analyze(files: tuple[Path, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    with pytest.raises(ValueError, match=r"empty\.json must hold detections, got none"):
        analyze_results(files[0], empty)
    content = {**json.loads(files[0].read_text()), "annotations": []}
    empty.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"empty\.json must hold annotations, got none"):
        analyze_results(empty, files[1])
    with pytest.raises(ValueError, match="does not exist"):
        analyze_results(files[0], tmp_path / "nowhere.json")


def test_names_must_fit(files: tuple[Path, Path]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(str(files[0]))
    with pytest.raises(ValueError, match="must name the 4 categories, got 1 names"):
        DetectionFigures.from_coco_eval(COCOeval(api, api, "bbox"), ["name"])


def test_script(
    files: tuple[Path, Path], repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    main = runpy.run_path(str(repository / "scripts" / "analyze_detections.py"))["main"]
    arguments = ["--json-file", str(files[0]), "--results", str(files[1])]
    main([*arguments, "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert (tmp_path / "per_class.md").read_text().splitlines()[0] in printed
    assert "precision_recall_segm.png" in printed
    with pytest.raises(SystemExit, match=r"error: .*does not exist"):
        main(["--json-file", str(files[0]), "--results", "nowhere.json"])


@pytest.mark.parametrize(("per_category", "limit", "warns"), [(True, 3, True), (True, 4, False)])
def test_more_objects_than_are_counted(per_category: bool, limit: int, warns: bool, caplog) -> None:
    content = make_content()
    for annotation in content["annotations"]:
        annotation["image_id"] = 3  # 4 of each category
    content["annotations"].append({**content["annotations"][0], "iscrowd": 1})
    api = coco_api(parse_coco(content, "a.json"))
    with caplog.at_level(logging.WARNING):
        warn_of_uncounted(api, limit, per_category=per_category)
    assert ("1 images have more than 3 objects of a category, such as 002.png" in caplog.text) == (
        warns
    )
    caplog.clear()
    warn_of_uncounted(api, 7, per_category=False)
    assert "dataloader.evaluator.max_dets_per_image=8" in caplog.text
