"""The evaluator on a data set of files; how segments are matched is in test_panoptic_quality.py."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.structures import BitMasks, Instances
from panoptic_samples import (
    CATEGORIES,
    CLASSES,
    MAPS,
    PanopticFiles,
    make_content,
    some_ids,
    write_map,
    write_panoptic,
    write_things,
)
from PIL import Image

from vitadapter.data.panoptic import register_panoptic
from vitadapter.evaluation.panoptic import panoptic_evaluator

Output = dict[str, object]


@pytest.fixture
def files(tmp_path: Path) -> PanopticFiles:
    return write_panoptic(tmp_path, MAPS)


def records_of(files: PanopticFiles) -> list[dict[str, object]]:
    return DatasetCatalog.get(register_panoptic("own", *files, **CLASSES))


def perfect(record: dict[str, object], ids: np.ndarray) -> Output:
    """The truth as a prediction, the crowd as no segment, in ids of its own."""
    kept = [s for s in record["segments_info"] if not s["iscrowd"]]
    predicted = torch.zeros(ids.shape, dtype=torch.int32)
    segments = []
    for number, segment in enumerate(kept, start=1):
        predicted[torch.as_tensor(ids == segment["id"])] = number
        segments.append({"id": number, "category_id": segment["category_id"], "isthing": True})
    return {"panoptic_seg": (predicted, segments)}


def run(
    evaluator: DatasetEvaluator, files: PanopticFiles, outputs: list[Output]
) -> dict[str, dict[str, float]]:
    evaluator.reset()
    for record, output in zip(records_of(files), outputs, strict=False):
        evaluator.process([record], [output])
    return evaluator.evaluate()


def perfect_outputs(files: PanopticFiles) -> list[Output]:
    return [perfect(r, ids) for r, ids in zip(records_of(files), MAPS.values(), strict=True)]


def test_the_truth_is_perfect(files: PanopticFiles) -> None:
    evaluator = panoptic_evaluator("own", *files, **CLASSES)
    (metrics,) = run(evaluator, files, perfect_outputs(files)).values()
    names = [f"{quality}{group}" for group in ("", "_th", "_st") for quality in ("PQ", "SQ", "RQ")]
    assert metrics == dict.fromkeys(names, 100.0)


def test_averages_over_classes(files: PanopticFiles) -> None:
    """Dogs are missed in two of three images, cats are called dogs; stuff stays perfect."""
    outputs = perfect_outputs(files)
    for number, output in enumerate(outputs):
        ids, segments = output["panoptic_seg"]
        for segment in copy.copy(segments):
            if segment["category_id"] == 0 and number > 0:
                ids[ids == segment["id"]] = 0
                segments.remove(segment)
            elif segment["category_id"] == 1:
                segment["category_id"] = 0
    metrics = run(panoptic_evaluator("own", *files, **CLASSES), files, outputs)["panoptic_seg"]
    # Dogs: 1 match, 3 false positives, 2 missed. Cats: 3 missed.
    assert metrics["PQ_th"] == pytest.approx(100 * (1 / 3.5 + 0) / 2)
    assert metrics["SQ_th"] == pytest.approx(100 * (1 + 0) / 2)
    assert metrics["PQ_st"] == metrics["SQ_st"] == metrics["RQ_st"] == 100
    assert metrics["PQ"] == pytest.approx(100 * (1 / 3.5 + 0 + 1 + 1) / 4)


def test_written_files(files: PanopticFiles, tmp_path: Path) -> None:
    """Predictions are COCO's format for results, in which they are the data set's own truth."""
    output_dir = tmp_path / "out"
    evaluator = panoptic_evaluator("own", *files, output_dir=str(output_dir), **CLASSES)
    run(evaluator, files, perfect_outputs(files))
    table = (output_dir / "panoptic_results.md").read_text()
    rows = {cells[1].strip(): cells for cells in (r.split("|") for r in table.splitlines() if r)}
    assert [cell.strip() for cell in rows["things"][2:-1]] == ["100.00", "100.00", "100.00", "2"]
    assert [cell.strip() for cell in rows["sky"][2:-1]] == ["100.00"] * 3 + ["3", "0", "0"]
    written = json.loads((output_dir / "panoptic_predictions.json").read_text())
    assert sorted(written["categories"], key=str) == sorted(CATEGORIES, key=str)
    results = make_content(MAPS) | written
    predicted = PanopticFiles(
        str(tmp_path / "results.json"),
        str(output_dir / "panoptic_predictions"),
        files.image_root,
    )
    Path(predicted.json_file).write_text(json.dumps(results))
    evaluator = panoptic_evaluator("own", *predicted, **CLASSES)
    assert run(evaluator, predicted, perfect_outputs(files))["panoptic_seg"]["PQ"] == 100
    with Image.open(output_dir / "panoptic_predictions" / "a.png") as picture:
        assert picture.mode == "RGB"


def test_maps_of_one_name_in_two_folders(tmp_path: Path) -> None:
    maps = {"ulm/1": some_ids(1), "bonn/1": some_ids(2)}
    files = write_panoptic(tmp_path, maps)
    evaluator = panoptic_evaluator("own", *files, output_dir=str(tmp_path / "out"), **CLASSES)
    outputs = [perfect(r, ids) for r, ids in zip(records_of(files), maps.values(), strict=True)]
    run(evaluator, files, outputs)
    written = json.loads((tmp_path / "out/panoptic_predictions.json").read_text())["annotations"]
    assert [prediction["file_name"] for prediction in written] == ["ulm/1.png", "bonn/1.png"]
    for name, output in zip(maps, outputs, strict=True):
        predicted, _ = output["panoptic_seg"]
        with Image.open(tmp_path / f"out/panoptic_predictions/{name}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture)[..., 0], predicted)


def test_classes_that_do_not_occur(tmp_path: Path) -> None:
    """They count in no average, and nothing is NaN."""
    ids = np.full((8, 8), 300)
    files = write_panoptic(tmp_path, {"a": ids})
    evaluator = panoptic_evaluator("own", *files, output_dir=str(tmp_path / "out"), **CLASSES)
    (record,) = records_of(files)
    metrics = run(evaluator, files, [perfect(record, ids)])["panoptic_seg"]
    assert set(metrics) == {"PQ", "SQ", "RQ", "PQ_st", "SQ_st", "RQ_st"}
    assert set(metrics.values()) == {100.0}
    assert "| dog   |      - |" in (tmp_path / "out/panoptic_results.md").read_text()


def test_nothing_is_predicted(files: PanopticFiles) -> None:
    nothing = {"panoptic_seg": (torch.zeros(48, 64, dtype=torch.int32), [])}
    metrics = run(panoptic_evaluator("own", *files, **CLASSES), files, [nothing] * 3)
    assert set(metrics["panoptic_seg"].values()) == {0.0}


def test_a_part_of_the_images(files: PanopticFiles, caplog: pytest.LogCaptureFixture) -> None:
    evaluator = panoptic_evaluator("own", *files, **CLASSES)
    assert run(evaluator, files, perfect_outputs(files)[:2])["panoptic_seg"]["PQ"] == 100
    assert "evaluated 2 of 3 images" in caplog.text


def test_faults_name_the_file(files: PanopticFiles) -> None:
    evaluator = panoptic_evaluator("own", *files, **CLASSES)
    small = {"panoptic_seg": (torch.zeros(48, 63, dtype=torch.int32), [])}
    with pytest.raises(ValueError, match=r"a\.jpg: .* \(48, 64\), got \(48, 63\)"):
        run(evaluator, files, [small])
    write_map(Path(files.panoptic_root, "b.png"), np.full((48, 64), 4))
    with pytest.raises(ValueError, match=r"b\.png has segments .* does not list: 4"):
        run(evaluator, files, perfect_outputs(files))


def instances_of(ids: np.ndarray) -> Instances:
    """The things of `some_ids`, sure, with the boxes of their masks."""
    masks = BitMasks(torch.as_tensor(ids) == torch.tensor([5, 66000])[:, None, None])
    kept = masks.tensor.flatten(1).any(1)
    found = Instances(ids.shape)
    found.pred_masks = masks.tensor[kept]
    found.pred_boxes = masks[kept].get_bounding_boxes()
    found.pred_classes = torch.tensor([0, 1])[kept]
    found.scores = torch.tensor([0.9, 0.8])[kept]
    return found


def test_average_precision_of_things(files: PanopticFiles, tmp_path: Path) -> None:
    """By pycocotools, with the things in COCO's instances format; boxes are those of masks."""
    things = write_things(tmp_path / "things.json", make_content(MAPS), list(MAPS.values()))
    evaluator = panoptic_evaluator("own", *files, things, str(tmp_path / "out"), **CLASSES)
    assert isinstance(evaluator, DatasetEvaluators)
    outputs = perfect_outputs(files)
    for output, ids in zip(outputs, MAPS.values(), strict=True):
        output["instances"] = instances_of(ids)
    metrics = run(evaluator, files, outputs)
    assert set(metrics) == {"panoptic_seg", "bbox", "segm"}
    assert metrics["panoptic_seg"]["PQ"] == 100
    for task in ("bbox", "segm"):
        assert metrics[task]["AP"] == pytest.approx(100)
        assert metrics[task]["AP-dog"] == metrics[task]["AP-cat"] == pytest.approx(100)
    # Called by the other's name, no thing is right.
    for output in outputs:
        output["instances"].pred_classes = 1 - output["instances"].pred_classes
    assert run(evaluator, files, outputs)["segm"]["AP"] < 1
