"""The report of a detector: its figures against pycocotools, its gallery, and what it refuses."""

import contextlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from detection_samples import make_annotations, make_detections
from evaluated_runs import read_report, write_detector_run, write_metrics
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitadapter.commands.report import main
from vitadapter.data.coco.results import coco_api, load_results
from vitadapter.evaluation.tide import ERRORS, find_errors
from vitadapter.report import write_report

RESULTS = "coco_instances_results.json"


def _small() -> tuple[dict, list[dict]]:
    content = make_annotations(images=3, seed=1)
    return content, make_detections(content, seed=2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Of a detector on three images."""
    return write_detector_run(tmp_path, *_small())


def test_figures_are_those_of_pycocotools_and_tide(tmp_path: Path) -> None:
    content = make_annotations(images=8, seed=3)
    detections = make_detections(content, seed=4)
    run = write_detector_run(tmp_path, content, detections)
    page, notes = write_report(run)
    data = read_report(page)
    assert notes == []
    files = tmp_path / "data" / "instances.json", run / "inference" / RESULTS
    for task in ("bbox", "segm"):
        part = data["parts"][task]
        plain = [{k: v for k, v in d.items() if task == "bbox" or k != "bbox"} for d in detections]
        with contextlib.redirect_stdout(io.StringIO()):
            api = COCO(str(files[0]))
            reference = COCOeval(api, api.loadRes(plain), task)
            reference.evaluate()
            reference.accumulate()
            reference.summarize()
        assert dict(part["means"])["AP"] == pytest.approx(100 * reference.stats[0], abs=0.006)
        precision = reference.eval["precision"][0, :, :, 0, -1]
        there = [k for k in range(precision.shape[1]) if precision[0, k] > -1]
        assert sorted(map(int, part["precision"]["classes"])) == there
        for k in there:
            drawn = part["precision"]["classes"][str(k)]
            np.testing.assert_allclose(drawn, precision[:, k], atol=0.0006)
            ap = part["table"]["rows"][k][part["table"]["columns"].index("AP")]
            of_class = reference.eval["precision"][:, :, k, 0, -1].mean()
            assert ap == pytest.approx(100 * of_class, abs=0.06)
        images = load_results(*files)
        errors = find_errors(coco_api(images.data), images.predictions, task)
        assert part["errors"]["rows"] == [
            [kind, errors.counts[kind], round(errors.costs[kind], 2)] for kind in ERRORS
        ]


def test_the_gallery_has_each_object_and_what_finds_it(run: Path) -> None:
    content, detections = _small()
    data = read_report(write_report(run)[0])
    assert [image["name"] for image in data["images"]] == ["1.png", "2.png", "3.png"]
    for record, image in zip(content["images"], data["images"], strict=True):
        folder = run / "report"
        assert (folder / image["file"]).is_file()
        found = np.reshape(image["detections"], (-1, 9))
        kept = [d for d in detections if d["image_id"] == record["id"] and d["score"] >= 0.05]
        assert len(found) == len(kept)
        assert (np.diff(found[:, 1]) <= 0).all(), "best score first"
        objects = np.reshape(image["objects"], (-1, 7))
        there = [a for a in content["annotations"] if a["image_id"] == record["id"]]
        assert len(objects) == len(there)
        assert (objects[:, 5] == -3).sum() == sum(a["iscrowd"] for a in there)
        right = found[:, 6] == data["kinds"].index("right")
        finders = objects[objects[:, 5] >= 0, 5].astype(int)
        finders = finders[finders < len(found)]  # others have a lower score than what is shown
        assert sorted(finders) == np.flatnonzero(right).tolist()
        areas = found[:, 4] * found[:, 5]
        assert (
            found[:, 7].tolist() == np.select([areas <= 32**2, areas <= 96**2], [0, 1], 2).tolist()
        )
        script = (folder / image["masks"]).read_text()
        outlines = json.loads(script[script.index(",") + 1 : script.rindex(")")])
        assert [len(side) for side in outlines] == [len(found), len(objects)]


def test_the_pairs_of_the_gallery_are_those_of_the_confusion_matrix(tmp_path: Path) -> None:
    content, detections = _small()
    content["annotations"][0].pop("segmentation")  # judged as a box, and not drawn among masks
    data = read_report(write_report(write_detector_run(tmp_path, content, detections))[0])
    for task, part in data["parts"].items():
        pairs: Counter[tuple[int, int]] = Counter()
        for image in data["images"]:
            classes = [
                dict(enumerate(np.reshape(image[kind], (-1, fields))[:, 0].astype(int).tolist()))
                for kind, fields in (("objects", 7), ("detections", 9))
            ]
            of_image = np.reshape(image["pairs"][task], (-1, 2)).tolist()
            pairs += Counter((classes[0].get(a, -1), classes[1].get(b, -1)) for a, b in of_image)
        expected = Counter({(a, b): n for a, b, n in part["confusion"]["cells"]})
        assert (expected - pairs).total() == (pairs - expected).total() == (task == "bbox")


def test_metrics_that_the_files_do_not_give_are_noted(run: Path) -> None:
    write_metrics(run, **{"bbox/AP": 99.0, "bbox/APs": float("nan")})
    with (run / "metrics.json").open("a") as file:
        file.write('{"iteration": 2')  # the run is still writing
    page, notes = write_report(run)
    assert any("but the evaluation logged 99.00" in note for note in notes)
    curves = read_report(page)["curves"]
    assert curves["metrics"]["bbox/AP"] == {"x": [20], "y": [99.0]}
    assert curves["metrics"]["bbox/APs"]["y"] == [None]
    assert len(curves["losses"]["total_loss"]["x"]) == 20


def test_a_line_that_was_cut_off_costs_no_curves(run: Path) -> None:
    """A resumed run appends to it."""
    write_metrics(run, **{"bbox/AP": 1.0})
    path = run / "metrics.json"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:9], lines[9][:25], *lines[9:]]))
    curves = read_report(write_report(run)[0])["curves"]
    assert curves["losses"]["total_loss"]["x"] == list(range(20))


def test_damaged_metrics_are_noted(run: Path) -> None:
    write_metrics(run)
    (run / "last_checkpoint").write_text("model_final.pth")
    lines = (run / "metrics.json").read_text().splitlines()
    (run / "metrics.json").write_text("\n".join([*lines[:4], "\0\0\0", *lines[5:]]))
    page, notes = write_report(run)
    assert notes[0].startswith("There are no curves of training: line 5 of ")
    assert read_report(page)["curves"] is None


def test_nothing_detected(run: Path) -> None:
    (run / "inference" / RESULTS).write_text("[]")
    page, notes = write_report(run)
    assert any("detects nothing" in note for note in notes)
    part = read_report(page)["parts"]["bbox"]
    assert dict(part["means"])["AP"] == 0
    assert all(predicted == -1 for _, predicted, _ in part["confusion"]["cells"])


def test_renamed_classes_are_noted(run: Path, tmp_path: Path) -> None:
    table = run / "inference" / "per_class.csv"
    names = ["all classes", "name2", "other", "name9", "name40"]
    table.write_text("task,class,objects\n" + "".join(f"bbox,{name},1\n" for name in names))
    _, notes = write_report(run)
    assert any("other → name5" in note for note in notes)


def test_an_image_that_is_gone_is_noted(run: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "images" / "2.png").unlink()
    page, notes = write_report(run)
    assert any("1 images cannot be read" in note for note in notes)
    assert [image["file"] is None for image in read_report(page)["images"]] == [False, True, False]


def test_paths_that_are_relative_to_where_the_run_was_started(
    run: Path, tmp_path: Path, monkeypatch
) -> None:
    """As those of the quickstart."""
    monkeypatch.chdir(tmp_path)
    evaluator = "dataloader.evaluator"
    overrides = [
        f"{evaluator}.json_file=data/instances.json",
        f"{evaluator}.image_root=data/images",
    ]
    page, notes = write_report(run, overrides=overrides)
    assert not any("cannot be read" in note for note in notes)
    images = read_report(page)["images"]
    assert [image["name"] for image in images] == ["1.png", "2.png", "3.png"]
    assert all((page.parent / image["file"]).is_file() for image in images)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ('[{"image_id": 77, "category_id": 2, "bbox": [0, 0, 2, 2], "score": 1}]', "77"),
        ('[{"image_id": 10, "categ', "evaluation was stopped"),
        (None, "has not been evaluated. Run `vitadapter eval"),
    ],
)
def test_unusable_results_are_an_error_line(
    run: Path, broken: str | None, message: str, capsys
) -> None:
    write_report(run)
    before = (run / "report" / "data.js").read_bytes()
    file = run / "inference" / RESULTS
    file.unlink() if broken is None else file.write_text(broken)
    assert main([str(run)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert (run / "report" / "data.js").read_bytes() == before, "the earlier report is kept"
    assert not list(run.glob(".report*"))


def test_other_folders_are_refused(run: Path, tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "there is no such folder" in capsys.readouterr().err
    assert main([str(run), "--output", str(tmp_path / "data")]) == 1
    assert "has other files (images, instances.json)" in capsys.readouterr().err
    assert (tmp_path / "data" / "instances.json").is_file()
    assert main([str(run), "--output", str(tmp_path / "data" / "instances.json")]) == 1
    assert "is a file" in capsys.readouterr().err


def test_a_report_goes_to_the_current_folder(run: Path, tmp_path: Path, monkeypatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for _ in range(2):  # the second one replaces the first
        assert main([str(run), "--output", "."]) == 0
        assert Path("index.html").is_file()
        assert sorted(path.name for path in Path().iterdir())[0] == "charts.js"


def test_files_that_were_put_beside_a_report_are_not_lost(
    run: Path, tmp_path: Path, capsys
) -> None:
    assert main([str(run)]) == 0
    assert main([str(run)]) == 0, "a report alone is replaced"
    mine = run / "report" / "remarks.txt"
    mine.write_text("mine")
    assert main([str(run)]) == 1
    assert "other files (remarks.txt)" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    (other / "data.js").write_text("let mine;")
    assert main([str(run), "--output", str(other)]) == 1
    assert "other files (data.js)" in capsys.readouterr().err
    assert mine.is_file()


def test_data_that_has_moved_is_named_by_an_override(run: Path, tmp_path: Path, capsys) -> None:
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    key = "dataloader.evaluator"
    overrides = [f"{key}.json_file={moved}/instances.json", f"{key}.image_root={moved}/images"]
    assert main([str(run)]) == 1
    assert "dataset.test.json_file=" in capsys.readouterr().err
    assert main([str(run), *overrides, "--output", str(tmp_path / "page")]) == 0
    assert str(tmp_path / "page" / "index.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataloader.evaluator=null", "got none: without one, a run is never evaluated"),
        ("dataloader.evaluator._target_=no.such.thing", "for a report, got no.such.thing"),
        ("dataloader.evaluator.output_dir=null", "output_dir must be a folder for a report"),
        (
            "dataloader.evaluator._target_=vitadapter.evaluation.lvis.lvis_evaluator",
            "for a report, got lvis_evaluator",
        ),
    ],
)
def test_other_evaluators_are_refused(run: Path, override: str, message: str, capsys) -> None:
    assert main([str(run), override]) == 1
    assert message in capsys.readouterr().err
