"""Right and false detections by score, against pycocotools' own matches; and confusions."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from detection_samples import make_annotations, make_detections
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitadapter.data.coco.results import EvaluatedImages, load_results
from vitadapter.evaluation.judging import judge_images
from vitadapter.evaluation.operating_point import confusions, pair_up, score_curves


def _load(folder: Path, content: object, detections: object) -> EvaluatedImages:
    files = folder / "instances.json", folder / "results.json"
    for file, data in zip(files, (content, detections), strict=True):
        file.write_text(json.dumps(data))
    return load_results(*files)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_counts_are_those_of_pycocotools(tmp_path: Path, task: str) -> None:
    content = make_annotations(images=20, seed=3)
    detections = make_detections(content, seed=4)
    images = _load(tmp_path, content, detections)
    numbers = {id_: number for number, id_ in enumerate(sorted(images.api.cats))}
    curves = score_curves(judge_images(images.api, images.predictions, task), numbers)
    plain = [{k: v for k, v in d.items() if task == "bbox" or k != "bbox"} for d in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(str(tmp_path / "instances.json"))
        reference = COCOeval(api, api.loadRes(plain), task)
        reference.evaluate()
    right, false = np.zeros_like(curves.right), np.zeros_like(curves.false)
    everything = reference.params.areaRng[0]
    for image in reference.evalImgs:
        if image is None or image["aRng"] != everything:
            continue
        for score, match, ignored in zip(
            image["dtScores"], image["dtMatches"][0], image["dtIgnore"][0], strict=True
        ):
            counts = right if match else false
            counts[numbers[image["category_id"]]] += (not ignored) & (score >= curves.thresholds)
    assert right.sum() > 0
    np.testing.assert_array_equal(curves.right, right)
    np.testing.assert_array_equal(curves.false, false)
    precision, recall, f1 = curves.figures(1)
    best = curves.best(1)
    assert f1[best] == pytest.approx(
        2 * precision[best] * recall[best] / (precision[best] + recall[best])
    )
    assert f1[best] == f1.max()
    at_best = curves.figures_at(best)
    assert [x[1] for x in at_best] == [precision[best], recall[best], f1[best]]
    assert np.isnan(curves.figures()[0][-1]), "nothing has a score of 1"


def test_every_object_and_detection_is_in_one_pair(tmp_path: Path) -> None:
    content = make_annotations(images=20, seed=5)
    content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
    detections = make_detections(content, seed=6)
    images = _load(tmp_path, content, detections)
    judged = judge_images(images.api, images.predictions, "bbox")
    pairs = confusions([pair_up(image, images.api, "bbox", 0.4) for image in judged])
    for category in images.api.cats:
        of_class = sum(n for (true, _), n in pairs.items() if true == category)
        assert of_class == sum(a["category_id"] == category for a in content["annotations"])
        as_class = sum(n for (_, found), n in pairs.items() if found == category)
        kept = [d for d in detections if d["category_id"] == category and d["score"] >= 0.4]
        assert as_class == len(kept)


def test_a_known_confusion(tmp_path: Path) -> None:
    """A cat taken for a dog, a dog found twice, a missed dog and a dog where nothing is."""
    boxes = {"cat": [0, 0, 20, 20], "dog": [40, 0, 20, 20], "far": [80, 80, 20, 20]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 200, "width": 200}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": c, "bbox": b, "area": 400, "iscrowd": 0}
            for n, (c, b) in enumerate(
                [(3, boxes["cat"]), (8, boxes["dog"]), (8, boxes["far"])], start=1
            )
        ],
    }
    found = [(8, boxes["cat"], 0.9), (8, boxes["dog"], 0.8), (8, boxes["dog"], 0.7)]
    found += [(8, [150, 150, 20, 20], 0.6), (3, boxes["far"], 0.1)]
    detections = [{"image_id": 1, "category_id": c, "bbox": b, "score": s} for c, b, s in found]
    images = _load(tmp_path, content, detections)
    judged = judge_images(images.api, images.predictions, "bbox")
    assert [x.error for x in judged[0].detections] == ["cls", None, "dupe", "bkg", "cls"]
    assert confusions([pair_up(image, images.api, "bbox", 0.5) for image in judged]) == {
        (3, 8): 1,
        (8, 8): 1,
        (8, None): 1,
        (None, 8): 2,
    }
