"""Reports in headless Chromium, from disk: filters, switches, and nothing that fails to load."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
from detection_samples import make_annotations, make_detections
from evaluated_runs import (
    read_report,
    write_detector_run,
    write_metrics,
    write_panoptic_run,
    write_segmenter_run,
)

from vitadapter.report import write_report


def matches(number: int | str) -> str:
    """As the page counts them."""
    return "1 match" if str(number) == "1" else f"{number} matches"


def test_filters_and_switches(
    browser: str, node_path: str, repository: Path, tmp_path: Path
) -> None:
    content = make_annotations(images=6, seed=3)
    detector = write_detector_run(tmp_path / "boxes", content, make_detections(content, seed=4))
    write_metrics(detector, **{"bbox/AP": 1.0})
    runs = [
        detector,
        write_segmenter_run(tmp_path / "labels")[0],
        write_panoptic_run(tmp_path / "panoptic"),
    ]
    pages = [write_report(run)[0] for run in runs]
    done = subprocess.run(
        ["node", repository / "tests" / "helpers" / "report_visit.cjs", browser, *pages],
        env={**os.environ, "NODE_PATH": node_path},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert [page["errors"] for page in seen] == [[], [], []]
    boxes, labels, panoptic = seen
    data = read_report(pages[0])
    images = [np.reshape(image["detections"], (-1, 9)) for image in data["images"]]
    false = data["kinds"].index("bkg")
    wanted = [(d[:, 1] >= 0.6) & (d[:, 6] == false) & (d[:, 7] == 2) for d in images]
    matching = [image for image in wanted if image.any()]
    total = sum(int(image.sum()) for image in matching)
    assert boxes["filtered"] == f"{matches(total)} in {len(matching)} of 6 images"
    assert boxes["cards"] == len(matching)
    assert boxes["all"] == boxes["reset"] == "6 of 6 images"
    rows = data["parts"]["bbox"]["table"]["rows"]
    by_ap = sorted((row for row in rows if row[3] is not None), key=lambda row: -row[3])
    assert boxes["sorted"][: len(by_ap)] == [row[0] for row in by_ap]
    assert boxes["rects"][0] > 0
    assert boxes["rects"][1] == 0, "boxes are switched off"
    assert boxes["masks"] > 0
    for number, shown in boxes["confused"]:
        assert shown.startswith(f"{matches(number)} in "), "the images are those of the matrix"
    for kind, shown in zip(("cls", "loc", "both", "dupe", "bkg"), boxes["kinds"], strict=False):
        number = sum(int((d[:, 6] == data["kinds"].index(kind)).sum()) for d in images)
        assert shown.startswith(f"{matches(number)} in "), "of any score"
    assert boxes["kinds_of_boxes"] == 0, "the images show kinds of masks"
    assert boxes["viewed"] == boxes["second"], "a key goes on by one image after a new rendering"
    assert boxes["unknown"], "a class that is not there is marked"
    ticks = list(map(float, boxes["rates"]))
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])
    assert 0 < ticks[1] < ticks[-1] < 1e-4
    assert boxes["of_boxes"] == "true"
    assert "0 taken for 1" in labels["pair"]
    assert labels["cards"] == 3
    assert labels["panels"] == 4
    assert panoptic["filtered"] == "1 match in 1 of 3 images"
