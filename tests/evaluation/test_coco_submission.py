"""What COCO's server takes, written by an evaluation on images without annotations."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from coco_samples import write_coco
from detection_samples import make_annotations, make_detections
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from vitadapter.evaluation.coco import coco_evaluator, image_set_name, write_submission


def _read(archive: Path) -> list[dict[str, object]]:
    with zipfile.ZipFile(archive) as opened:
        (name,) = opened.namelist()
        assert name == archive.with_suffix(".json").name
        return json.loads(opened.read(name))


def test_boxes_and_masks_are_two_entries(tmp_path: Path) -> None:
    content = make_annotations()
    results = make_detections(content)
    for result in results:
        result["bbox"] = [value + 1 / 3 for value in result["bbox"]]
    archives = write_submission(
        results, tmp_path / "out", test_set="test-dev2017", algorithm="my-net"
    )
    name = "detections_test-dev2017_my-net_results.zip"
    assert archives == [tmp_path / "out" / f"submission_{t}" / name for t in ("bbox", "segm")]
    boxes, masks = map(_read, archives)
    for box, mask, result in zip(boxes, masks, results, strict=True):
        assert set(box) == {"image_id", "category_id", "bbox", "score"}
        assert set(mask) == {"image_id", "category_id", "segmentation", "score"}
        assert (box["image_id"], box["category_id"]) == (result["image_id"], result["category_id"])
        np.testing.assert_allclose(box["bbox"], result["bbox"], atol=0.005)
        assert max(len(str(value).partition(".")[2]) for value in box["bbox"]) <= 2
        assert box["score"] == mask["score"] == pytest.approx(result["score"], abs=5e-7)
        assert isinstance(mask["segmentation"]["counts"], str)
        assert mask_util.area(mask["segmentation"]) > 0
    # The server's own tool reads them.
    (tmp_path / "a.json").write_text(json.dumps(content))
    api = COCO(str(tmp_path / "a.json"))
    for archive in archives:
        assert len(api.loadRes(_read(archive)).anns) == len(results)


def test_detectors_without_masks(tmp_path: Path) -> None:
    results = [{"image_id": 1, "category_id": 2, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}]
    (archive,) = write_submission(results, tmp_path, test_set="x", algorithm="y")
    assert _read(archive) == results
    (archive,) = write_submission([], tmp_path, test_set="nothing", algorithm="y")
    assert _read(archive) == []


def test_names() -> None:
    assert image_set_name("coco/annotations/image_info_test-dev2017.json") == "test-dev2017"
    assert image_set_name("mine.json") == "mine"


@pytest.mark.parametrize("algorithm", ["", "my net", "a/b", "Ä&B"])
def test_names_of_algorithms_that_cannot_be(tmp_path: Path, algorithm: str) -> None:
    with pytest.raises(ValueError, match=f"file name, got '{algorithm}'"):
        write_submission([], tmp_path, test_set="x", algorithm=algorithm)
    # Before anything is computed.
    files = write_coco(tmp_path, make_annotations(images=1))
    with pytest.raises(ValueError, match="file name, got"):
        coco_evaluator("x", *files, algorithm=algorithm)
