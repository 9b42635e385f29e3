"""Every figure of `HotCocoEval` must equal pycocotools' to the last bit."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from detection_samples import make_annotations
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitadapter.evaluation.coco import coco_evaluator

pytest.importorskip("hotcoco")

from vitadapter.evaluation.hotcoco import HotCocoEval

SIDE = 200
CATEGORIES = (3, 1, 90, 7)


def region_at(x: float, y: float, w: float, h: float) -> dict[str, object]:
    """A triangle and its box."""
    (mask,) = mask_util.frPyObjects([[x, y, x + w, y, x + w / 2, y + h]], SIDE, SIDE)
    return {"bbox": [x, y, w, h], "segmentation": mask, "area": float(mask_util.area(mask))}


def region(rng: np.random.Generator) -> dict[str, object]:
    return region_at(*map(float, rng.uniform(1, SIDE / 2, 4).round(2)))


def sample(name: type, task: str) -> tuple[COCO, COCO]:
    """Images with crowds, without objects and without detections, and detections of equal score."""
    rng = np.random.default_rng(5)
    # As words, the ids are in another order than as numbers.
    images = [{"id": name(number), "height": SIDE, "width": SIDE} for number in range(1, 21)]
    objects, detections = [], []
    for image in images:
        for _ in range(0 if int(image["id"]) % 5 == 0 else 8):
            found = {**region(rng), "image_id": image["id"]}
            found["category_id"] = int(rng.choice(CATEGORIES[:3]))
            objects.append({**found, "id": len(objects) + 1, "iscrowd": int(rng.random() < 0.2)})
            x, y, w, h = found["bbox"]
            near = {**found, **region_at(x + float(rng.normal(0, 3)), y, w, h)}
            detections.append({**near, "score": round(float(rng.random()), 1)})
        for _ in range(0 if int(image["id"]) % 7 == 0 else 12):
            found = {**region(rng), "image_id": image["id"], "score": float(rng.random())}
            detections.append({**found, "category_id": int(rng.choice(CATEGORIES))})
    api = COCO()
    api.dataset = {
        "images": images,
        "categories": [{"id": number, "name": str(number)} for number in CATEGORIES],
        "annotations": objects,
    }
    api.createIndex()
    other = "bbox" if task == "segm" else "segmentation"
    return api, api.loadRes([{k: v for k, v in d.items() if k != other} for d in detections])


def run(
    kind: type[COCOeval], name: type, task: str, max_dets: list[int], images: list[int] | None
) -> COCOeval:
    evaluation = kind(*sample(name, task), task)
    evaluation.params.maxDets = max_dets
    if images is not None:
        evaluation.params.imgIds = [name(number) for number in images]
    evaluation.evaluate()
    evaluation.accumulate()
    COCOevalMaxDets.summarize(evaluation)
    return evaluation


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize(
    ("name", "max_dets", "images"),
    [
        (int, [1, 10, 100], None),
        (str, [1, 10, 100], None),
        (int, [1, 3, 3], None),
        (int, [2, 5, 7], [20, 3, 5, 7, 4, 4]),
    ],
)
def test_all_figures_are_those_of_pycocotools(
    task: str, name: type, max_dets: list[int], images: list[int] | None
) -> None:
    expected = run(COCOeval, name, task, max_dets, images)
    found = run(HotCocoEval, name, task, max_dets, images)
    assert 0.02 < expected.stats[0] < 0.98
    for figure in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(found.eval[figure], expected.eval[figure])
    np.testing.assert_array_equal(found.stats, expected.stats)
    assert found.eval["counts"] == list(expected.eval["counts"])


def test_keypoints_and_missing_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    annotations, detections = sample(int, "bbox")
    with pytest.raises(ValueError, match=r"must be 'bbox' or 'segm', got 'keypoints'"):
        HotCocoEval(annotations, detections, "keypoints")
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with pytest.raises(ValueError, match=r"pip install 'vitadapter\[fast-eval\]'"):
        HotCocoEval(annotations, detections, "bbox")


def test_a_missing_package_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(make_annotations()))
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with pytest.raises(ValueError, match=r"pip install 'vitadapter\[fast-eval\]'"):
        coco_evaluator("", str(file), str(tmp_path), cocoeval=HotCocoEval)
