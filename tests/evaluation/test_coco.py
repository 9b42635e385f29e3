import json
import logging
from pathlib import Path

import pytest
import torch
from coco_samples import make_content, polygon_of, write_coco
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools.cocoeval import COCOeval

from vitadapter.data.coco import load_coco_dataset, register_coco
from vitadapter.evaluation.coco import coco_evaluator
from vitadapter.evaluation.detection_analysis import analyze_results


def perfect_predictions(records: list[dict], size: int, masks: bool) -> list[tuple[dict, dict]]:
    """One exact detection per annotation of the data set."""
    pairs = []
    for record in records:
        boxes, classes, filled = [], [], []
        for annotation in record["annotations"]:
            x, y, w, h = annotation["bbox"]
            boxes.append([x, y, x + w, y + h])
            classes.append(annotation["category_id"])
            mask = torch.zeros(size, size, dtype=torch.bool)
            mask[y : y + h, x : x + w] = True
            filled.append(mask)
        instances = Instances((size, size))
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        instances.scores = torch.ones(len(boxes))
        instances.pred_classes = torch.tensor(classes)
        if masks:
            instances.pred_masks = torch.stack(filled)
        pairs.append(({"image_id": record["image_id"]}, {"instances": instances}))
    return pairs


def evaluate(
    paths: tuple[str, str], folder: Path, masks: bool = True, plot_curves: bool = False, **options
) -> dict:
    records = load_coco_dataset("x", *paths, num_classes=2, role="test", masks=False)
    evaluator = coco_evaluator(
        "x", *paths, output_dir=str(folder / "out"), plot_curves=plot_curves, **options
    )
    evaluator.reset()
    for sample, output in perfect_predictions(records, 64, masks):
        evaluator.process([sample], [output])
    return evaluator.evaluate()


@pytest.mark.parametrize("kind", ["polygon", "rle", "mixed"])
def test_exact_predictions_score_100(tmp_path: Path, kind: str) -> None:
    results = evaluate(write_coco(tmp_path, make_content(masks=kind)), tmp_path)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP-class1"] == pytest.approx(100)
    assert (tmp_path / "out" / "coco_instances_results.json").is_file()


@pytest.mark.parametrize("max_dets", [100, 1])
def test_another_class_computes_the_metrics(tmp_path: Path, max_dets: int) -> None:
    paths = write_coco(tmp_path, make_content())
    calls = []

    class Counting(COCOeval):
        def accumulate(self, p: object = None) -> None:
            calls.append(self.params.iouType)
            super().accumulate(p)

    options = {"max_dets_per_image": max_dets}
    found = evaluate(paths, tmp_path, cocoeval=Counting, **options)
    assert calls == ["bbox", "segm"]
    assert str(found) == str(evaluate(paths, tmp_path, cocoeval=COCOeval, **options))  # with NaNs
    with pytest.raises(TypeError, match="must be pycocotools' COCOeval or a subclass, got 'fast'"):
        coco_evaluator("x", *paths, cocoeval="fast")


def test_missing_fields_are_filled_in(tmp_path: Path) -> None:
    content = make_content()
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    results = evaluate(write_coco(tmp_path, content), tmp_path)
    assert results["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("segmentation", [None, [], [[1, 2]]])
def test_annotations_without_mask_are_left_out(
    tmp_path: Path, segmentation: list | None, caplog
) -> None:
    content = make_content()
    content["annotations"][0]["segmentation"] = segmentation
    if segmentation is None:
        del content["annotations"][0]["segmentation"]
    with caplog.at_level(logging.WARNING, "vitadapter"):
        results = evaluate(write_coco(tmp_path, content), tmp_path)
    assert results["segm"]["AP"] > 50
    assert "dropped annotations without a mask: 1, namely" in caplog.text


def test_box_only_evaluation_keeps_every_annotation(tmp_path: Path) -> None:
    content = make_content()
    del content["annotations"][0]["segmentation"]
    paths = write_coco(tmp_path, content)
    results = evaluate(paths, tmp_path, masks=False, tasks=["bbox"])
    assert results.keys() == {"bbox"}
    assert results["bbox"]["AP"] == pytest.approx(100)
    paths = write_coco(tmp_path / "boxes", make_content(masks="none"))
    assert evaluate(paths, tmp_path, masks=False)["bbox"]["AP"] == pytest.approx(100)


def test_file_without_annotations_writes_predictions_only(tmp_path: Path) -> None:
    paths = write_coco(tmp_path, make_content())
    records = load_coco_dataset("x", *paths, num_classes=2)
    content = make_content()
    del content["annotations"]
    Path(paths[0]).write_text(json.dumps(content))
    evaluator = coco_evaluator("x", *paths, output_dir=str(tmp_path / "out"))
    evaluator.reset()
    for sample, output in perfect_predictions(records, 64, masks=True):
        evaluator.process([sample], [output])
    assert evaluator.evaluate() == {}
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert len(written) == 8
    for task in ("bbox", "segm"):
        folder = tmp_path / "out" / f"submission_{task}"
        entries = json.loads((folder / "detections_instances_vitadapter_results.json").read_text())
        assert [e["category_id"] for e in entries] == [r["category_id"] for r in written]
        assert {e["category_id"] for e in entries} == {1, 2}  # not 0 and 1, as the model has them
        assert (folder / "detections_instances_vitadapter_results.zip").is_file()


def test_tables_and_curves_lie_next_to_the_results(tmp_path: Path) -> None:
    """The same as are made from the files that the evaluation leaves."""
    paths = write_coco(tmp_path, make_content())
    evaluate(paths, tmp_path)
    folder = tmp_path / "out"
    curves = folder / "precision_recall_segm.png"
    assert not curves.exists()
    evaluate(paths, tmp_path, plot_curves=True)
    assert curves.is_file()
    analyze_results(paths[0], folder / "coco_instances_results.json", tmp_path / "again")
    for name in ("per_class.md", "per_class.csv"):
        assert (folder / name).read_text() == (tmp_path / "again" / name).read_text()


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset\.test\.json_file="):
        coco_evaluator("x", str(tmp_path / "nowhere.json"), str(tmp_path))
    with pytest.raises(ValueError, match="tasks"):
        coco_evaluator("x", *write_coco(tmp_path, make_content()), tasks=["boxes"])


def test_more_than_100_objects(tmp_path: Path, caplog) -> None:
    """As pycocotools counts with maxDets, in the figures, the tables and the analysis."""
    content = make_content(images=1)
    content["annotations"] = [
        {
            "id": 0,
            "image_id": 1,
            "category_id": 1 + i % 2,
            "bbox": [4 * (i % 16), 4 * (i // 16), 3, 3],
            "segmentation": polygon_of((4 * (i % 16), 4 * (i // 16), 3, 3)),
        }
        for i in range(230)
    ]
    paths = write_coco(tmp_path, content)
    few = evaluate(paths, tmp_path)
    assert 60 < few["bbox"]["AP"] < 90
    assert "set dataloader.evaluator.max_dets_per_image=115" in caplog.text
    caplog.clear()
    results = evaluate(paths, tmp_path, max_dets_per_image=115)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP-class1"] == pytest.approx(100)
    assert "max_dets_per_image" not in caplog.text
    assert "100.0" in (tmp_path / "out" / "per_class.md").read_text()
    results_file = tmp_path / "out" / "coco_instances_results.json"
    for limit, expected in ((115, 100), (100, few["segm"]["AP"])):
        tasks, _ = analyze_results(paths[0], results_file, tmp_path, max_dets_per_image=limit)
        assert tasks[1].summary()["AP"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="max_dets_per_image must be at least 1, got 0"):
        coco_evaluator("x", *paths, max_dets_per_image=0)


def test_masks_are_evaluated_where_there_are_some(tmp_path: Path, caplog) -> None:
    paths = write_coco(tmp_path, make_content(masks="none"))
    assert evaluate(paths, tmp_path).keys() == {"bbox"}
    assert "has no masks: only boxes are evaluated" in caplog.text
    with pytest.raises(ValueError, match=r"none of the 8 annotations of .*instances\.json has a"):
        coco_evaluator("x", *paths, tasks=["segm"])


def test_categories_of_the_metadata_must_be_those_of_the_file(tmp_path: Path) -> None:
    json_file, image_root = write_coco(tmp_path, make_content())
    name = register_coco("x", json_file, image_root)
    MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = {1: 0, 7: 1}
    with pytest.raises(ValueError, match=r"instances\.json has 2 categories .* not the 2 that the"):
        coco_evaluator(name)
    DatasetCatalog.register("test_coco_own_function", list)
    MetadataCatalog.get("test_coco_own_function").set(
        json_file=json_file, thing_dataset_id_to_contiguous_id={1: 0, 7: 1}
    )
    try:
        with pytest.raises(ValueError, match=r"instances\.json must have .* none has the id 7"):
            coco_evaluator("test_coco_own_function")
    finally:
        DatasetCatalog.remove("test_coco_own_function")
        MetadataCatalog.remove("test_coco_own_function")
