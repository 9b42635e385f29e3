"""The report of a panoptic segmenter whose one mistake is known."""

import json
from pathlib import Path

import numpy as np
import pytest
from evaluated_runs import read_report, write_panoptic_run
from panoptic_samples import CATEGORIES, NAMES

from vitadapter.commands.report import main
from vitadapter.report import write_report


def test_a_dog_that_is_taken_for_a_cat(tmp_path: Path) -> None:
    run = write_panoptic_run(tmp_path)
    data = read_report(write_report(run)[0])
    assert data["classes"] == NAMES
    part = data["parts"]["panoptic"]
    rows = {row[0]: row[5:] for row in part["table"]["rows"]}
    matched, false, missed = np.array([rows[name] for name in NAMES]).T
    assert (false.tolist(), missed.tolist()) == ([0, 1, 0, 0], [1, 0, 0, 0])
    dog, cat = NAMES.index("dog"), NAMES.index("cat")
    cells = {(a, b): n for a, b, n in part["confusion"]["cells"]}
    assert cells.pop((dog, cat)) == 1
    assert cells == {(k, k): n for k, n in enumerate(matched.tolist()) if n}
    kinds = [np.reshape(i["detections"], (-1, 9))[:, 6].astype(int) for i in data["images"]]
    wrong = [[data["kinds"][k] for k in image if data["kinds"][k] != "right"] for image in kinds]
    assert wrong == [["cls"], [], []]
    states = [np.reshape(image["objects"], (-1, 7))[:, 5] for image in data["images"]]
    assert [int((state == -1).sum()) for state in states] == [1, 0, 0]
    first = np.reshape(data["images"][0]["detections"], (-1, 9))
    (about,) = first[first[:, 8] >= 0]
    assert about[0] == cat
    assert states[0][int(about[8])] == -1
    pq = [row[2] for row in part["table"]["rows"] if row[2] is not None]
    assert dict(part["means"])["PQ"] == pytest.approx(np.mean(pq), abs=0.01)


def test_renamed_classes_are_noted(tmp_path: Path) -> None:
    run = write_panoptic_run(tmp_path)
    results = run / "inference" / "panoptic_predictions.json"
    entries = [{**c, "name": "lawn" if c["id"] == 9 else c["name"]} for c in CATEGORIES]
    content = json.loads(results.read_text()) | {"categories": entries}
    results.write_text(json.dumps(content))
    _, notes = write_report(run)
    assert any("lawn → grass" in note for note in notes)


def test_nothing_predicted(tmp_path: Path) -> None:
    run = write_panoptic_run(tmp_path)
    (run / "inference" / "panoptic_predictions.json").write_text('{"annotations": []}')
    page, notes = write_report(run)
    assert "3 of 3 images have no prediction and are left out" in notes
    assert read_report(page)["images"] == []


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ('{"annotations": [{"image_id": 1, "file_n', "still writing; wait for it"),
        ('{"annotations": [{"image_id": 1, "segments_info": []}]}', "KeyError('file_name')"),
        (
            '{"annotations": [{"image_id": 77, "file_name": "a.png", "segments_info": []}]}',
            "has predictions for the images 77, and none for those of the data set",
        ),
    ],
)
def test_unusable_results_are_an_error_line(
    tmp_path: Path, results: str, message: str, capsys
) -> None:
    run = write_panoptic_run(tmp_path)
    (run / "inference" / "panoptic_predictions.json").write_text(results)
    assert main([str(run)]) == 1
    assert message in capsys.readouterr().err


def test_without_results_it_says_what_to_run(tmp_path: Path, capsys) -> None:
    run = write_panoptic_run(tmp_path)
    (run / "inference" / "panoptic_predictions.json").unlink()
    assert main([str(run)]) == 1
    assert "has not been evaluated. Run `vitadapter eval" in capsys.readouterr().err
