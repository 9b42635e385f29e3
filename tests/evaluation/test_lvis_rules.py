"""LVIS's rules against loops written from the paper, and against the `lvis` package."""

import contextlib
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lvis_samples import CATEGORIES, FREQUENCIES, make_lvis, make_lvis_detections
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from vitadapter.evaluation.lvis import evaluate_lvis, frequency_figures

Content = dict[str, list[dict[str, object]]]
Entry = dict[str, object]
AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
MOST = 9  # detections of an image, fewer than there are


@pytest.fixture(scope="module")
def content() -> Content:
    return make_lvis()


@pytest.fixture(scope="module")
def detections(content: Content) -> list[Entry]:
    return make_lvis_detections(content)


def _box_iou(a: Entry, b: Entry) -> float:
    (ax, ay, aw, ah), (bx, by, bw, bh) = a["bbox"], b["bbox"]
    w = min(ax + aw, bx + bw) - max(ax, bx)
    h = min(ay + ah, by + bh) - max(ay, by)
    shared = max(w, 0) * max(h, 0)
    return shared / (aw * ah + bw * bh - shared)


def _mask_iou(a: Entry, b: Entry) -> float:
    first, second = (mask_util.decode(each["segmentation"]).astype(bool) for each in (a, b))
    return (first & second).sum() / (first | second).sum()


def _within(area: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= area <= bounds[1]


def _match(
    objects: list[Entry],
    found: list[Entry],
    threshold: float,
    bounds: tuple[float, float],
    overlap: Callable[[Entry, Entry], float],
    area: Callable[[Entry], float],
    exhaustive: bool,
) -> list[tuple[float, bool]]:
    """Score and correctness of the detections that count, of one category in one image."""
    counted, free = [], list(objects)
    for detection in sorted(found, key=lambda d: -d["score"]):
        match = None
        for wanted in (True, False):  # objects of other sizes only if there is no better use
            fitting = [o for o in free if _within(o["area"], bounds) is wanted]
            best = max(fitting, key=lambda o: overlap(detection, o), default=None)
            if best is not None and overlap(detection, best) >= threshold:
                match = best
                break
        if match is not None:
            free.remove(match)
            if _within(match["area"], bounds):
                counted.append((detection["score"], True))
        elif exhaustive and _within(area(detection), bounds):
            counted.append((detection["score"], False))
    return counted


def _average_precision(counted: list[tuple[float, bool]], number: int) -> float:
    right = np.cumsum([correct for _, correct in sorted(counted, key=lambda c: -c[0])])
    recall, precision = right / number, right / np.arange(1, len(right) + 1)
    points = []
    for level in np.linspace(0, 1, 101):
        # pycocotools compares without a tolerance, too.
        reached = precision[recall >= level]
        points.append(reached.max() if len(reached) else 0)
    return float(np.mean(points))


def _reference(
    content: Content, detections: list[Entry], task: str, suffix: str, category: int
) -> list[float]:
    """AP of a category at each IoU threshold, in percent; empty without objects."""
    overlaps: dict[tuple[int, int], float] = {}
    plain = {"bbox": _box_iou, "segm": _mask_iou}[task]

    def overlap(a: Entry, b: Entry) -> float:
        if (id(a), id(b)) not in overlaps:
            overlaps[id(a), id(b)] = plain(a, b)
        return overlaps[id(a), id(b)]

    def area(detection: Entry) -> float:
        w, h = detection["bbox"][2:]
        return w * h if task == "bbox" else mask_util.area(detection["segmentation"])

    objects = [a for a in content["annotations"] if a["category_id"] == category]
    number = sum(_within(o["area"], AREAS[suffix]) for o in objects)
    if number == 0:
        return []
    precisions = []
    for threshold in np.linspace(0.5, 0.95, 10):
        counted = []
        for image in content["images"]:
            here = [o for o in objects if o["image_id"] == image["id"]]
            if not here and category not in image["neg_category_ids"]:
                continue
            found = [d for d in detections if d["image_id"] == image["id"]]
            found = sorted(found, key=lambda d: -d["score"])[:MOST]
            found = [d for d in found if d["category_id"] == category]
            exhaustive = category not in image["not_exhaustive_category_ids"]
            counted += _match(
                here, found, threshold, AREAS[suffix], overlap, area, exhaustive=exhaustive
            )
        precisions.append(100 * _average_precision(counted, number))
    return precisions


def _api(content: Content) -> COCO:
    api = COCO()
    annotations = [{**annotation, "iscrowd": 0} for annotation in content["annotations"]]
    api.dataset = {**content, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return api


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_figures_are_those_of_plain_loops(
    content: Content, detections: list[Entry], task: str
) -> None:
    figures = evaluate_lvis(_api(content), detections, task, max_dets_per_image=MOST)
    by_frequency: dict[str, list[float]] = {"r": [], "c": [], "f": []}
    for suffix in AREAS:
        all_categories = []
        for index, category in enumerate(CATEGORIES):
            expected = _reference(content, detections, task, suffix, category)
            ours = figures.summary(index)
            if not expected:
                assert np.isnan(ours[f"AP{suffix}"])
                continue
            all_categories.append(np.mean(expected))
            assert ours[f"AP{suffix}"] == pytest.approx(np.mean(expected), abs=1e-6)
            if not suffix:
                by_frequency[FREQUENCIES[index]].append(np.mean(expected))
                assert ours["AP50"] == pytest.approx(expected[0], abs=1e-6)
                assert ours["AP75"] == pytest.approx(expected[5], abs=1e-6)
        assert figures.summary()[f"AP{suffix}"] == pytest.approx(np.mean(all_categories), abs=1e-6)
    groups = frequency_figures(figures, content["categories"])
    assert groups == pytest.approx(
        {f"AP{name}": np.mean(values) for name, values in by_frequency.items()}, abs=1e-6
    )
    assert len({round(value, 3) for value in groups.values()}) == 3
    objects = [annotation["category_id"] for annotation in content["annotations"]]
    assert figures.counts.tolist() == [objects.count(category) for category in CATEGORIES]


def test_each_rule_changes_the_figures(content: Content, detections: list[Entry]) -> None:
    """Otherwise the test above would prove nothing of it."""

    def average(content: Content, most: int = MOST) -> float:
        api = _api(content)
        return evaluate_lvis(api, detections, "bbox", max_dets_per_image=most).summary()["AP"]

    ours = average(content)
    changes = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    for key, value in changes.items():
        images = [{**image, key: value} for image in content["images"]]
        assert abs(average({**content, "images": images}) - ours) > 0.1, key
    assert abs(average(content, most=300) - ours) > 0.1


def test_categories_that_do_not_tell_their_frequency(content: Content) -> None:
    figures = evaluate_lvis(_api(content), make_lvis_detections(content), "bbox")
    assert frequency_figures(figures, [{"id": c} for c in CATEGORIES]) == {}


def test_detections_of_what_was_not_looked_for_are_as_good_as_none(content: Content) -> None:
    image = content["images"][0]
    looked_for = {
        *image["neg_category_ids"],
        *(a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]),
    }
    other = next(category for category in CATEGORIES if category not in looked_for)
    alone = {
        "image_id": image["id"],
        "category_id": other,
        "bbox": [0.0, 0.0, 9.0, 9.0],
        "score": 1.0,
    }
    assert evaluate_lvis(_api(content), [alone], "bbox").summary()["AP"] == 0


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_equals_the_lvis_package(
    content: Content,
    detections: list[Entry],
    task: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it is installed; its release 0.5.3 needs the alias that NumPy 1.24 removed."""
    lvis = pytest.importorskip("lvis")
    monkeypatch.setattr(np, "float", float, raising=False)
    logging.getLogger("lvis").setLevel(logging.ERROR)
    json_file = tmp_path / "lvis.json"
    json_file.write_text(json.dumps(content))
    truth = lvis.LVIS(str(json_file))
    region = {"bbox": "bbox", "segm": "segmentation"}[task]
    keys = ("image_id", "category_id", "score", region)
    results = [{key: detection[key] for key in keys} for detection in detections]
    theirs = lvis.LVISEval(truth, lvis.LVISResults(truth, results, max_dets=MOST), task)
    theirs.run()
    figures = evaluate_lvis(_api(content), detections, task, max_dets_per_image=MOST)
    ours = {**figures.summary(), **frequency_figures(figures, content["categories"])}
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"):
        assert ours[name] == pytest.approx(100 * theirs.get_results()[name], abs=1e-9), name
    assert ours["AR"] == pytest.approx(100 * theirs.get_results()["AR@300"], abs=1e-9)
