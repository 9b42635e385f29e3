"""TIDE's errors, against `tidecv` 1.0.1 and a case whose errors are known."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from coco_samples import rle_of
from detection_samples import make_annotations, make_detections
from PIL import Image

from vitadapter.commands.analyze_errors import main
from vitadapter.data.coco.results import coco_api, load_results
from vitadapter.evaluation.detection_analysis import evaluate_detections
from vitadapter.evaluation.tide import (
    ERRORS,
    SPECIAL_ERRORS,
    DetectionErrors,
    analyze_errors,
    find_errors,
)

TASKS = ("bbox", "segm")
FULL, HALF = (10, 10, 30, 30), (25, 10, 30, 30)  # their IoU is 1/3


def _write(folder: Path, content: object, detections: object) -> tuple[Path, Path]:
    files = folder / "instances.json", folder / "coco_instances_results.json"
    for file, data in zip(files, (content, detections), strict=True):
        file.write_text(json.dumps(data))
    return files


def _find(files: tuple[Path, Path], task: str) -> DetectionErrors:
    images = load_results(*files)
    return find_errors(coco_api(images.data, masks=task == "segm"), images.predictions, task)


def _random(seed: int, crowds: bool) -> tuple[dict, list[dict]]:
    """Annotations, and detections of the classes that have objects."""
    content = make_annotations(images=30, seed=seed)
    found = make_detections(content, seed=seed + 50)
    if not crowds:
        content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
    there = {a["category_id"] for a in content["annotations"] if not a["iscrowd"]}
    return content, [d for d in found if d["category_id"] in there]


# What tidecv 1.0.1 finds: AP and the costs in the order of ERRORS and SPECIAL_ERRORS; the counts.
TIDECV = {
    (0, "bbox"): (
        (29.622, 3.463, 12.745, 2.076, 1.024, 9.382, 10.087, 28.793, 20.282),
        (15, 24, 17, 24, 58, 29),
    ),
    (0, "segm"): (
        (23.632, 3.125, 16.834, 2.12, 0.6, 7.429, 9.645, 28.513, 21.114),
        (11, 31, 25, 20, 58, 32),
    ),
    (5, "bbox"): (
        (34.168, 4.991, 5.476, 2.853, 1.544, 9.597, 11.214, 35.469, 14.797),
        (13, 17, 23, 24, 57, 25),
    ),
    (5, "segm"): (
        (28.616, 5.223, 8.135, 2.906, 1.376, 8.298, 10.095, 35.41, 15.788),
        (11, 26, 26, 19, 58, 27),
    ),
}


@pytest.mark.parametrize(("seed", "task"), TIDECV)
def test_agrees_with_tidecv(tmp_path: Path, seed: int, task: str) -> None:
    """With crowds for seed 0, without for seed 5."""
    (ap, *costs), counts = TIDECV[seed, task]
    errors = _find(_write(tmp_path, *_random(seed, crowds=seed == 0)), task)
    assert errors.ap == pytest.approx(ap, abs=6e-4)
    assert [errors.costs[k] for k in (*ERRORS, *SPECIAL_ERRORS)] == pytest.approx(costs, abs=6e-4)
    assert tuple(errors.counts[kind] for kind in ERRORS) == counts


@pytest.mark.parametrize("task", TASKS)
def test_ap_is_that_of_the_evaluation(tmp_path: Path, task: str) -> None:
    """Also if a class without objects is predicted, and with a limit of detections."""
    content = make_annotations()
    images = load_results(*_write(tmp_path, content, make_detections(content)))
    api = coco_api(images.data, masks=task == "segm")
    found = [x for by_image in images.predictions.values() for x in by_image]
    for limit in (1, 100):
        errors = find_errors(api, images.predictions, task, max_dets_per_image=limit)
        expected = evaluate_detections(api, found, task, max_dets_per_image=limit)
        assert errors.ap == pytest.approx(expected.summary()["AP50"], abs=1e-9)
        assert errors.costs["FP"] > 0


def _one_of_each() -> tuple[dict, list[dict]]:
    """An error of each kind, in an image of its own; class 2 has one object, which is found."""
    objects = [(1, 1), (2, 1), (3, 1), (4, 1), (6, 2), (7, 1)]
    found = [
        (1, 1, FULL, 0.9),
        (1, 1, FULL, 0.8),  # dupe
        (2, 2, FULL, 0.7),  # cls
        (3, 1, HALF, 0.6),  # loc
        (4, 2, HALF, 0.5),  # both, so that the object is a miss
        (5, 1, FULL, 0.4),  # bkg
        (6, 2, FULL, 0.3),
        (7, 1, FULL, 0.2),
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in range(9)],
        "categories": [{"id": c, "name": f"class{c}"} for c in (1, 2)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": FULL,
                "area": 900,
                "iscrowd": 0,
                "segmentation": rle_of(FULL, 64),
            }
            for number, (image, category) in enumerate(objects, start=1)
        ],
    }
    return content, [
        {
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "score": score,
            "segmentation": rle_of(box, 64),
        }
        for image, category, box, score in found
    ]


@pytest.mark.parametrize("task", TASKS)
def test_one_error_of_each_kind(tmp_path: Path, task: str) -> None:
    errors = _find(_write(tmp_path, *_one_of_each()), task)
    assert errors.counts == dict.fromkeys(ERRORS, 1) | {"FP": 5, "FN": 3}
    # Of class 1, there are 5 objects, so each is worth 20 of COCO's 101 recalls, the first one 21.
    # It is detected right, wrong, wrong, wrong, right; class 2 wrong, wrong, right.
    first, second = (21 + 20 * 2 / 5) / 101, 1 / 3
    after = {
        "cls": ((21 + 20 * 2 / 3 + 20 * 3 / 6) / 101, 1 / 2),
        "loc": ((21 + 20 * 2 / 3 + 20 * 3 / 5) / 101, 1 / 3),
        "both": (first, 1 / 2),
        "dupe": ((21 + 20 * 2 / 4) / 101, 1 / 3),
        "bkg": ((21 + 20 * 2 / 4) / 101, 1 / 3),
        "miss": ((26 + 25 * 2 / 5) / 101, 1 / 3),
        "FP": (41 / 101, 1),
        "FN": ((51 + 50 * 2 / 5) / 101, 1 / 3),
    }
    assert errors.ap == pytest.approx(100 * (first + second) / 2)
    for kind, corrected in after.items():
        gain = 100 * (np.mean(corrected) - (first + second) / 2)
        assert errors.costs[kind] == pytest.approx(gain), kind


def test_command_and_script_compare_runs(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations, results = _write(tmp_path, *_one_of_each())
    perfect = tmp_path / "perfect.json"
    truth = json.loads(annotations.read_text())["annotations"]
    perfect.write_text(json.dumps([{**a, "score": 0.5} for a in truth]))
    # Such names are neither mathematics nor left out of the legend.
    runs = ["--run", "_$x_$", str(results), "--run", "per|fect", str(perfect)]
    arguments = ["--json-file", str(annotations), *runs, "--output", str(tmp_path / "a" / "b")]
    main(arguments)
    printed = capsys.readouterr().out
    assert runpy.run_path(str(repository / "scripts" / "analyze_errors.py"))["main"] is main
    tables = (tmp_path / "a" / "b" / "tide_errors.md").read_text()
    assert tables.strip() in printed
    header, _, first, second = (
        [c.strip() for c in x.split(" | ")] for x in tables.splitlines()[:4]
    )
    assert header[1:] == ["AP50", *ERRORS, "FP", "FN |"]
    assert first[-1] == "20.79 (3) |"
    assert second[:3] == ["| per\\|fect", "100.00", "0.00 (0)"]
    rows = (tmp_path / "a" / "b" / "tide_errors.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2 * 8
    for task in TASKS:
        with Image.open(tmp_path / "a" / "b" / f"tide_errors_{task}.png") as picture:
            assert picture.size == (1400, 600)
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_masks_are_left_out_if_a_run_has_none(tmp_path: Path) -> None:
    content, detections = _one_of_each()
    annotations, results = _write(tmp_path, content, detections)
    boxes = tmp_path / "boxes.json"
    boxes.write_text(
        json.dumps([{k: v for k, v in d.items() if k != "segmentation"} for d in detections])
    )
    text, written = analyze_errors(annotations, {"a": results, "b": boxes}, tmp_path / "out")
    assert "segm" not in text
    assert [path.name for path in written] == [
        "tide_errors.md",
        "tide_errors.csv",
        "tide_errors_bbox.png",
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"image_id": 77},
            "result 0 of .* must have as image_id one that the annotation file lists",
        ),
        (
            {"category_id": 77},
            "must have as category_id one that the annotation file lists, got 77",
        ),
        (None, r"results\.json must hold detections, got none"),
    ],
)
def test_results_of_another_data_set(
    tmp_path: Path, changed: dict[str, int] | None, message: str
) -> None:
    content, detections = _one_of_each()
    detections = [] if changed is None else [{**detections[0], **changed}]
    annotations, results = _write(tmp_path, content, detections)
    with pytest.raises(ValueError, match=message):
        analyze_errors(annotations, {"run": results}, tmp_path)


def test_other_mistakes(tmp_path: Path) -> None:
    annotations, results = _write(tmp_path, *_one_of_each())
    with pytest.raises(ValueError, match="at least one results file"):
        analyze_errors(annotations, {}, tmp_path)
    options = ["--json-file", str(annotations), "--output", str(tmp_path)]
    run = ["--run", "a", str(results)]
    with pytest.raises(SystemExit, match="names of runs must differ, got 'a' twice"):
        main([*options, *run, *run])
    with pytest.raises(SystemExit, match="max_dets_per_image must be at least 1, got 0"):
        main([*options, *run, "--max-dets-per-image", "0"])
    # What the evaluation of a semantic segmenter writes.
    predicted = {"file_name": "1.png", "category_id": 1, "segmentation": rle_of(FULL, 64)}
    results.write_text(json.dumps([predicted]))
    with pytest.raises(SystemExit, match=r"result 0 of .* must be an object with \['bbox'"):
        main([*options, *run])
    _write(tmp_path, {**_one_of_each()[0], "annotations": []}, _one_of_each()[1])
    with pytest.raises(SystemExit, match="must hold annotations, got none"):
        main([*options, *run])
