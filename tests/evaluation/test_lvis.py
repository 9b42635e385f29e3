"""The evaluator: class numbers, files, figures; the rules are tested in test_lvis_rules.py."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances
from lvis_samples import CATEGORIES, make_lvis, make_lvis_detections, write_lvis
from omegaconf import DictConfig
from pycocotools import mask as mask_util

from vitadapter.engine.trainer import do_test
from vitadapter.evaluation.lvis import LVISEvaluator, lvis_evaluator
from vitadapter.model_zoo import get_config

Content = dict[str, list[dict[str, object]]]
SIZE = 256


@pytest.fixture(scope="module")
def content() -> Content:
    return make_lvis(images=6)


@pytest.fixture(scope="module")
def files(content: Content, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_lvis(tmp_path_factory.mktemp("lvis"), content)


def _feed(evaluator: LVISEvaluator, entries: list[dict[str, object]], content: Content) -> None:
    evaluator.reset()
    for image in content["images"]:
        here = [entry for entry in entries if entry["image_id"] == image["id"]]
        boxes = torch.tensor([entry["bbox"] for entry in here]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances((SIZE, SIZE), pred_boxes=Boxes(boxes.float()))
        instances.scores = torch.tensor([float(entry.get("score", 1)) for entry in here])
        classes = [CATEGORIES.index(entry["category_id"]) for entry in here]
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        masks = np.array([mask_util.decode(entry["segmentation"]) for entry in here], dtype=bool)
        instances.pred_masks = torch.from_numpy(masks.reshape(-1, SIZE, SIZE))
        evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])


def test_exact_predictions_score_100(
    content: Content, files: tuple[str, str], tmp_path: Path
) -> None:
    evaluator = lvis_evaluator("x", *files, output_dir=str(tmp_path), plot_curves=False)
    _feed(evaluator, content["annotations"], content)
    results = evaluator.evaluate()
    assert set(results) == {"bbox", "segm"}
    for metrics in results.values():
        assert [*metrics] == [
            *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR"),
        ]
        assert all(value == pytest.approx(100) for value in metrics.values())
    written = json.loads((tmp_path / "lvis_instances_results.json").read_text())
    assert len(written) == len(content["annotations"])
    assert {entry["category_id"] for entry in written} <= set(CATEGORIES)
    assert "name40" in (tmp_path / "per_class.md").read_text()


def test_figures_of_the_files_are_those_of_the_run(
    content: Content, files: tuple[str, str], tmp_path: Path
) -> None:
    evaluator = LVISEvaluator(files[0], str(tmp_path), tasks=["bbox"], max_dets_per_image=9)
    _feed(evaluator, make_lvis_detections(content), content)
    results = evaluator.evaluate()
    assert set(results) == {"bbox"}
    assert 0 < results["bbox"]["AP"] < 90
    assert (tmp_path / "precision_recall_bbox.png").is_file()
    evaluator.max_dets_per_image = 2
    assert evaluator.evaluate()["bbox"]["AR"] < results["bbox"]["AR"]


def test_without_annotations_predictions_are_written(
    content: Content, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = {key: content[key] for key in ("images", "categories")}
    json_file = tmp_path / "image_info.json"
    json_file.write_text(json.dumps(images))
    evaluator = LVISEvaluator(str(json_file), str(tmp_path / "out"))
    _feed(evaluator, make_lvis_detections(content), content)
    assert evaluator.evaluate() == {}
    assert "no AP is computed" in caplog.text
    assert (tmp_path / "out" / "lvis_instances_results.json").is_file()


@pytest.mark.parametrize("frequency", [None, "F", "", 5, []])
def test_unknown_frequencies_are_told(
    frequency: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = make_lvis()
    LVISEvaluator(write_lvis(tmp_path, content)[0])
    assert caplog.text == ""
    content["categories"][1]["frequency"] = frequency
    evaluator = LVISEvaluator(write_lvis(tmp_path, content)[0], plot_curves=False)
    assert "1 of 5 categories have no frequency of 'r', 'c' or 'f', such as" in caplog.text
    _feed(evaluator, make_lvis_detections(content), content)
    results = evaluator.evaluate()["bbox"]
    assert math.isnan(results["APc"])
    assert results["APf"] > 0
    for category in content["categories"]:
        category["frequency"] = frequency
    evaluator = LVISEvaluator(write_lvis(tmp_path, content)[0], plot_curves=False)
    _feed(evaluator, make_lvis_detections(content), content)
    assert not {"APr", "APc", "APf"} & set(evaluator.evaluate()["bbox"])


def test_a_model_that_finds_nothing(content: Content, files: tuple[str, str]) -> None:
    evaluator = LVISEvaluator(files[0])
    _feed(evaluator, [], content)
    results = evaluator.evaluate()
    assert all(math.isnan(value) for value in results["bbox"].values())


def test_bad_arguments(files: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of 'bbox' and 'segm', got \['boxes'\]"):
        LVISEvaluator(files[0], tasks=["boxes"])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        LVISEvaluator(files[0], max_dets_per_image=0)
    with pytest.raises(ValueError, match=r"dataset\.test\.json_file="):
        lvis_evaluator("x", str(tmp_path / "nowhere.json"), files[1])
    image = '{"id": 1, "file_name": "a", "height": 9, "width": 9}'
    no_name = f'{{"images": [{image}], "categories": [{{"id": 1}}]}}'
    for broken in ("[", "[]", '{"images": []}', '{"images": [1]}', no_name):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(ValueError, match=r"broken\.json(: images\[0\]| is|: cat| has| holds)"):
            LVISEvaluator(str(tmp_path / "broken.json"))


def test_a_detector_is_evaluated(
    content: Content, files: tuple[str, str], tmp_path: Path, repository: Path
) -> None:
    cfg: DictConfig = LazyConfig.load(str(repository / "tests" / "helpers" / "tiny_mask_rcnn.py"))
    data = get_config("common/data/lvis.py")
    cfg.dataset, cfg.dataloader = data.dataset, data.dataloader
    cfg.dataset.num_classes = 5
    cfg.dataset.test.update(json_file=files[0], image_root=files[1])
    cfg.dataloader.test.num_workers = 0
    cfg.dataloader.test.mapper.augmentations[0].update(short_edge_length=64, max_size=64)
    cfg.dataloader.evaluator.plot_curves = False
    cfg.train.output_dir = str(tmp_path)
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.0
    torch.manual_seed(0)
    results = do_test(cfg, instantiate(cfg.model).eval())
    assert set(results) == {"bbox", "segm"}
    assert 0 <= results["segm"]["AP"] < 50
    assert (tmp_path / "inference" / "per_class.csv").is_file()
