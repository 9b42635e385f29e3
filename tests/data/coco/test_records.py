"""Data sets that functions of users return."""

import copy

import numpy as np
import pytest
from coco_samples import make_content
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode, Instances
from detectron2.structures.boxes import Boxes
from hypothesis import given, settings
from json_mutations import faulty
from torch import tensor

from vitadapter.data.coco.annotations import parse_coco
from vitadapter.data.coco.records import check_records
from vitadapter.data.coco.results import coco_api
from vitadapter.evaluation.coco import coco_evaluator


def _records(masks: str = "mixed") -> list[dict[str, object]]:
    return parse_coco(make_content(images=2, masks=masks), "a.json").records


def test_boxes_of_both_modes_and_other_fields() -> None:
    records = _records()
    given_records = copy.deepcopy(records)
    for record in given_records:
        record["weather"] = "fine"
        for annotation in record["annotations"]:
            x, y, w, h = annotation["bbox"]
            annotation.update(bbox=np.array([x, y, x + w, y + h]), bbox_mode=BoxMode.XYXY_ABS)
            annotation["colour"] = "red"
    data = check_records(given_records, "'mine'", ["a", "b"], {5: 0, 9: 1})
    assert [category["id"] for category in data.categories] == [5, 9]
    for record, expected in zip(data.records, records, strict=True):
        assert record["weather"] == "fine"
        for found, original in zip(record["annotations"], expected["annotations"], strict=True):
            assert found == {**original, "colour": "red"}


def test_an_image_may_be_listed_again_for_training_only() -> None:
    data = check_records(_records() * 2, "'mine'", None, None)
    assert len(data.records) == 4
    with pytest.raises(ValueError, match=r"000\.png has none of its own, 1"):
        coco_api(data)
    records = _records()
    records[1]["image_id"] = 1
    with pytest.raises(ValueError, match=r"001\.png\) has the image_id 1, and so has 000\.png"):
        check_records(records, "'mine'", None, None)


def test_class_numbers_must_have_names() -> None:
    with pytest.raises(ValueError, match=r"png has the category_id 1, .* name 1 thing_classes"):
        check_records(_records(), "'mine'", ["a"], None)


def test_ids_of_two_types_and_images_without_a_list_are_refused() -> None:
    records = _records()
    records[1]["image_id"] = "b"
    with pytest.raises(ValueError, match=r"001\.png\) has the image_id 'b', but others .* as 1:"):
        check_records(records, "'mine'", None, None)
    records = _records()
    del records[1]["annotations"]
    with pytest.raises(ValueError, match=r"001\.png\): either all images .* an empty list"):
        check_records(records, "'mine'", None, None)


@pytest.mark.parametrize("ids", [{1: 0}, {1: 0, 2: 0}, {1: 0, 2: 2}, {1: 0, 2: 1, 3: 2}, [1, 2]])
def test_each_class_has_one_category_id(ids: object) -> None:
    with pytest.raises(ValueError, match=r"'mine': thing_dataset_id_to_contiguous_id .* 0\.\.1"):
        check_records(_records(), "'mine'", ["a", "b"], ids)


def test_random_faults_are_refused_by_name() -> None:
    records = _records()

    @settings(max_examples=80, deadline=None)
    @given(content=faulty(records))
    def check(content: list[dict[str, object]]) -> None:
        before = repr(content)
        try:
            data = check_records(content, "'mine'", ["a", "b"], None)
        except ValueError as error:
            if "'mine'" not in str(error):
                raise
        else:
            assert len(data.records) == len(content)
        assert repr(content) == before

    check()


def test_a_registered_function_is_evaluated_without_a_json_file() -> None:
    """By what it returns: no file is written that a later run could take for its own."""
    records = _records("none")
    DatasetCatalog.register("test_coco_records", lambda: records)
    MetadataCatalog.get("test_coco_records").thing_classes = ["a", "b"]
    try:
        evaluator = coco_evaluator("test_coco_records", plot_curves=False)
        evaluator.reset()
        for record in records:
            boxes = Boxes(tensor([a["bbox"] for a in record["annotations"]]).float())
            boxes.tensor[:, 2:] += boxes.tensor[:, :2]
            instances = Instances((64, 64), pred_boxes=boxes, scores=tensor([0.9, 0.9]))
            instances.pred_classes = tensor([a["category_id"] for a in record["annotations"]])
            evaluator.process([record], [{"instances": instances}])
        assert evaluator.evaluate()["bbox"]["AP-b"] == pytest.approx(100)
        assert MetadataCatalog.get("test_coco_records").get("json_file") is None
    finally:
        DatasetCatalog.remove("test_coco_records")
        MetadataCatalog.remove("test_coco_records")
