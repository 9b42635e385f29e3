"""The report of a semantic segmenter, against confusions that numpy counts."""

import json
from pathlib import Path

import numpy as np
import pytest
from evaluated_runs import picture, read_report, write_segmenter_run

from vitadapter.commands.report import main
from vitadapter.report import write_report
from vitadapter.visualization.overlays import Palette


def test_confusions_ious_and_maps(tmp_path: Path) -> None:
    run, pairs = write_segmenter_run(tmp_path)
    page, _ = write_report(run)
    data = read_report(page)
    expected = np.zeros((3, 3), dtype=int)
    for truth, predicted in pairs:
        known = truth != 255
        expected += np.bincount(3 * truth[known] + predicted[known], minlength=9).reshape(3, 3)
    part = data["parts"]["sem_seg"]
    found = np.zeros((3, 3), dtype=int)
    for true, predicted, count in part["confusion"]["cells"]:
        found[true, predicted] = count
    np.testing.assert_array_equal(found, expected)
    iou = 100 * np.diag(expected) / (expected.sum(0) + expected.sum(1) - np.diag(expected))
    assert [row[3] for row in part["table"]["rows"]] == pytest.approx(iou, abs=0.006)
    assert dict(part["means"])["mIoU"] == pytest.approx(iou.mean(), abs=0.006)
    for image, (truth, predicted) in zip(data["images"], pairs, strict=True):
        wrong = (truth != predicted) & (truth != 255)
        assert image["wrong"] == wrong.sum()
        errors = picture(page.parent / image["errors"])
        np.testing.assert_array_equal(errors[..., 3] == 255, wrong)
        drawn = picture(page.parent / image["predicted"])[..., :3]
        np.testing.assert_array_equal(drawn, Palette().table(3)[predicted])
        assert (picture(page.parent / image["truth"])[truth == 255, 3] == 0).all()


def test_results_of_other_images_are_refused(tmp_path: Path, capsys) -> None:
    run, _ = write_segmenter_run(tmp_path)
    file = run / "inference" / "sem_seg_predictions.json"
    entries = [{**e, "file_name": "other.jpg"} for e in json.loads(file.read_text())]
    file.write_text(json.dumps(entries))
    assert main([str(run)]) == 1
    assert "other.jpg, and none for the images of the data set" in capsys.readouterr().err


def test_nothing_predicted(tmp_path: Path) -> None:
    run, _ = write_segmenter_run(tmp_path)
    (run / "inference" / "sem_seg_predictions.json").write_text("[]")
    page, notes = write_report(run)
    assert "3 of 3 images have no prediction and are left out" in notes
    data = read_report(page)
    assert data["images"] == []
    assert dict(data["parts"]["sem_seg"]["means"])["mIoU"] is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("results", "still writing; wait for it, or evaluate again"),
        ("images", "images does not exist: set dataset.test.image_root="),
    ],
)
def test_what_is_cut_off_or_gone_is_an_error_line(
    tmp_path: Path, damage: str, message: str, capsys
) -> None:
    run, _ = write_segmenter_run(tmp_path)
    file = run / "inference" / "sem_seg_predictions.json"
    if damage == "results":
        file.write_text(file.read_text()[:500])
    else:
        (tmp_path / "data" / "images").rename(tmp_path / "gone")
    assert main([str(run)]) == 1
    assert message in capsys.readouterr().err


def test_renamed_classes_are_noted(tmp_path: Path) -> None:
    run, _ = write_segmenter_run(tmp_path)
    table = {"classes": ["0", "road", "2"], "predicted_by_true": []}
    (run / "inference" / "confusion_matrix.json").write_text(json.dumps(table))
    _, notes = write_report(run)
    assert any("road → 1" in note for note in notes)
