"""Every field of COCO's and LVIS's format: mended with a word, or refused by name."""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from coco_samples import make_content, write_coco
from hypothesis import given, settings
from json_mutations import faulty
from lvis_samples import make_lvis
from PIL import Image
from pycocotools import mask as mask_util

from vitadapter.data.coco import load_coco_dataset
from vitadapter.data.coco.annotations import CocoData, parse_coco, read_coco, with_masks
from vitadapter.data.coco.records import check_records
from vitadapter.data.coco.results import coco_api
from vitadapter.data.dataset_mapper import DatasetMapper
from vitadapter.evaluation.detection_analysis import evaluate_detections
from vitadapter.evaluation.lvis import evaluate_lvis

Content = dict[str, list[dict[str, object]]]


def _annotations(data: CocoData) -> list[dict[str, object]]:
    return [annotation for record in data.records for annotation in record["annotations"]]


def _each(content: Content, **fields: object) -> None:
    for annotation in content["annotations"]:
        annotation.update(fields)


@pytest.mark.parametrize("id_", [0, None, "a", 7, [1], float("nan")])
def test_ids_of_annotations_mean_nothing(id_: object) -> None:
    content = make_content()
    expected = parse_coco(content, "a.json")
    _each(content, id=id_)
    assert parse_coco(content, "a.json") == expected
    for annotation in content["annotations"]:
        del annotation["id"]
    assert parse_coco(content, "a.json") == expected


@pytest.mark.parametrize(
    ("field", "value", "warned"),
    [
        ("area", None, False),
        ("area", float("nan"), True),
        ("area", -1, True),
        ("area", "9", True),
        ("area", 1e11, True),
        ("area", True, True),
        ("iscrowd", None, False),
        ("iscrowd", False, False),
        ("ignore", 0, False),
        ("keypoints", [20, 20, 2], False),
    ],
)
def test_what_may_be_unknown(field: str, value: object, warned: bool, caplog) -> None:
    content = make_content()
    for annotation in content["annotations"]:  # as make_content has them
        assert annotation["area"] == annotation["bbox"][2] * annotation["bbox"][3]
    expected = parse_coco(content, "a.json")
    _each(content, **{field: value})
    with caplog.at_level(logging.WARNING):
        assert parse_coco(content, "a.json") == expected
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == warned
    for text in texts:
        assert text.startswith("a.json: took the area of the box for annotations whose area is not")
        assert ": 8, such as" in text
        assert text.endswith("such as annotations[0] (id 1, image 1, 000.png)")


def _repeat(content: Content, key: str, **changes: object) -> None:
    content[key].append({**content[key][0], **changes})


_PLACE = r"a\.json: annotations\[2\] \(id 3, image 2, 001\.png\) "


def _third(**fields: object) -> Callable[[Content], None]:
    return lambda content: content["annotations"][2].update(fields)


def _image(**fields: object) -> Callable[[Content], None]:
    return lambda content: content["images"][0].update(fields)


FAULTS = {
    "image id twice": (
        lambda c: _repeat(c, "images", file_name="z.png"),
        r"a\.json: two of the images have the id 1, images\[0\] \(file_name '000\.png'\) and .*z\.",
    ),
    "category id twice": (
        lambda c: _repeat(c, "categories", name="z"),
        r"two of the categories have the id 1, .*'class0'.*'z'",
    ),
    "image id of another type": (
        _third(image_id="2"),
        r"annotations\[2\] \(id 3, image '2', None\) has a text as image_id, '2', but the images "
        "have a number, 2",
    ),
    "texts and numbers as ids": (_image(id="1"), "ids of its images must be all numbers or all"),
    "no image id": (_image(id=None), r"images\[0\] \(file_name '000\.png'\) must .* got None"),
    "no image of an annotation": (_third(image_id=None), "of the images as image_id, got None"),
    "unknown category": (_third(category_id=9), _PLACE + "has the unknown category_id 9"),
    "text as category": (_third(category_id="1"), _PLACE + "has a text as category_id, '1', but"),
    "no category": (_third(category_id=None), _PLACE + "must have the id of .* got None"),
    "no name": (lambda c: c["categories"][1].update(name=None), "category 2 must have a text as n"),
    "no images": (lambda c: c.update(images=None), r"a\.json must have a list as its images, got"),
    "no list": (lambda c: c.update(annotations={}), "a list as its annotations, got an object"),
    "no object": (lambda c: c["annotations"].append(5), r"annotations\[8\] must be an object, got"),
    "crowd": (_third(iscrowd=2), _PLACE + "must have 0 or 1 as iscrowd, got 2"),
    "ignored": (_third(ignore=1), _PLACE + 'must not have "ignore"'),
    "width": (_image(width=0), r"image 1 \('000\.png'\) must have positive whole numbers .* 0"),
    "height": (_image(height="64"), "positive whole numbers as height and width, got '64' and 64"),
    "float": (_image(height=64.5), "got 64.5 and 64"),
    "too large": (_image(height=10**6, width=10**6), "fewer than 2\\^31 pixels"),
    "file name": (_image(file_name=None), "must have a text as file_name, got None"),
    "flat polygon": (_third(segmentation=[1, 2, 3, 4, 5, 6]), _PLACE + "must have flat lists"),
    "texts in a polygon": (_third(segmentation=[["1"] * 6]), _PLACE + "must have flat lists"),
    "no mask": (_third(segmentation=True), _PLACE + "must have a list of polygons, or an RLE"),
    "box": (_third(bbox=[1, 2, "3", 4]), _PLACE + "must have a box of 4 numbers as bbox, got"),
    "all elsewhere": (lambda c: _each(c, image_id=99), "no annotation is of one of its images"),
    "searched": (_image(neg_category_ids=["1"]), "has a text as neg_category_ids, '1', but the"),
    "not a list": (_image(neg_category_ids=1), "must have a list of category ids as neg_cat"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_refused(kind: str) -> None:
    damage, message = FAULTS[kind]
    content = make_content()
    damage(content)
    with pytest.raises(ValueError, match=message):
        parse_coco(content, "a.json")


def test_annotations_of_images_that_are_not_there_are_counted(caplog) -> None:
    content = make_content()
    del content["images"][2]
    assert len(_annotations(parse_coco(content, "a.json"))) == 6
    assert "a.json: left out annotations of images that are not in the file: 2, " in caplog.text


def test_whole_floats_and_texts_are_ids() -> None:
    content = make_content()
    expected = parse_coco(content, "a.json")
    for image in content["images"]:
        image.update(id=float(image["id"]), height=64.0)
    data = parse_coco(content, "a.json")
    assert data == expected
    assert isinstance(data.records[0]["height"], int)
    for image in content["images"]:
        image["id"] = f"i{image['id']:.0f}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"i{annotation['image_id']}"
    data = parse_coco(content, "a.json")
    assert [r["image_id"] for r in data.records] == ["i1", "i2", "i3", "i4"]
    assert _annotations(data) == _annotations(expected)


def test_names_are_texts_of_their_own(caplog) -> None:
    content = make_content(classes=3)
    for category, name in zip(content["categories"], ("a", 7, "a"), strict=True):
        category["name"] = name
    assert parse_coco(content, "a.json").class_names == ["a (1)", "7", "a (3)"]
    assert "added the id to the names of categories that share their name: 2, " in caplog.text
    assert "such as a (1)" in caplog.text


def test_the_parent_of_other_categories_is_no_class(tmp_path: Path, caplog) -> None:
    """As exports of annotation services have it, for training and evaluation alike."""
    content = make_content()
    for category in content["categories"]:
        category["supercategory"] = "animals"
    content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    data = parse_coco(content, "a.json")
    assert data.class_names == ["class0", "class1"]
    assert data.dataset_ids == {1: 0, 2: 1}
    assert "namely 'animals' (id 0)" in caplog.text
    assert list(coco_api(data).cats) == [1, 2]
    files = write_coco(tmp_path, content)
    advice = rf"set dataset\.num_classes=2\. If animals .* remove every \"super.* from {files[0]}"
    with pytest.raises(ValueError, match=advice):
        load_coco_dataset("x", *files, num_classes=3)
    annotated = copy.deepcopy(content)
    annotated["annotations"][0]["category_id"] = 0
    assert len(parse_coco(annotated, "a.json").categories) == 3
    for category in content["categories"]:
        del category["supercategory"]
    assert len(parse_coco(content, "a.json").categories) == 3  # the advice helps


def test_repeated_annotations_stay_and_are_counted(caplog) -> None:
    """As pycocotools counts them: the AP of a file must not depend on who reads it."""
    content = make_content()
    first = content["annotations"][0]
    repeated = [{**first, "id": 100}, {**first, "id": 101, "area": 1}]
    different = [{**first, "category_id": 2}, {**first, "segmentation": []}]
    number = len(content["annotations"])
    content["annotations"] += different
    data = parse_coco(content, "a.json")
    assert "repeat" not in caplog.text
    content["annotations"] += repeated
    data = parse_coco(content, "a.json")
    assert len(_annotations(data)) == number + 4
    assert "a.json: annotations repeat another one of the same image" in caplog.text
    assert "counts as an object: 2, such as" in caplog.text
    caplog.clear()
    check_records(data.records, "'mine'", None, None)
    assert "'mine': annotations repeat another one" in caplog.text


def test_test_sets_without_annotations_may_have_parents() -> None:
    content = make_content()
    for category in content["categories"]:
        category["supercategory"] = "animals"
    content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    del content["annotations"]
    assert parse_coco(content, "a.json").class_names == ["class0", "class1"]


def test_one_file_under_two_ids_is_told(caplog) -> None:
    """Each of the two images has but its own part of the objects."""
    content = make_content()
    parse_coco(content, "a.json")
    assert caplog.text == ""
    content["images"][1]["file_name"] = content["images"][0]["file_name"]
    assert len(parse_coco(content, "a.json").records) == len(content["images"])
    assert "ids, each of which has its own annotations: 1, namely" in caplog.text
    assert "000.png of the images 1 and 2" in caplog.text


def test_a_list_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """As of two files joined by hand; Python would take the last alone."""
    text = json.dumps(make_content())
    (tmp_path / "a.json").write_text(text[:-1] + ', "annotations": []}')
    with pytest.raises(ValueError, match=r"a\.json: an object has the key 'annotations' more than"):
        read_coco(tmp_path / "a.json")


def test_a_category_may_be_its_own_supercategory() -> None:
    """As COCO's person, in a file in which nobody is to be seen."""
    content = make_content()
    content["categories"].append({"id": 3, "name": "person", "supercategory": "person"})
    assert parse_coco(content, "a.json").class_names == ["class0", "class1", "person"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_files_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    content = make_content()
    content["categories"][0]["name"] = "Bäume"
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    assert read_coco(path).class_names == ["Bäume", "class1"]


def test_images_lie_in_their_folder(tmp_path: Path) -> None:
    content = make_content(images=1)
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    for name in ("b.png", "a/../b.png", str(root / "b.png"), str(tmp_path / "link" / "b.png")):
        content["images"][0]["file_name"] = name
        (record,) = parse_coco(content, "a.json").located(root).records
        assert Path(record["file_name"]).resolve() == root / "b.png"
    for name in ("../b.png", "a/../../b.png", "/b.png", str(tmp_path / "root2" / "b.png")):
        content["images"][0]["file_name"] = name
        with pytest.raises(ValueError, match=r"a\.json: image 1 must have a file_name inside the"):
            parse_coco(content, "a.json").located(root)


SAMPLES = {
    "coco": make_content(images=2, masks="mixed"),
    "lvis": make_lvis(images=3, seed=2),
}
SAMPLES["coco"]["annotations"][0]["segmentation"] = {"size": [64, 64], "counts": [64, 64, 3968]}


def _exact(data: CocoData) -> list[dict[str, object]]:
    found = []
    for record in data.records:
        size = record["height"], record["width"]
        for annotation in record["annotations"]:
            mask = annotation.get("segmentation")
            if isinstance(mask, list):
                mask = mask_util.merge(mask_util.frPyObjects(mask, *size))
            found.append(
                {
                    "image_id": record["image_id"],
                    "category_id": data.categories[annotation["category_id"]]["id"],
                    "bbox": annotation["bbox"],
                    "score": 0.9,
                    **({"segmentation": mask} if mask else {}),
                }
            )
    return found


def _map(data: CocoData, folder: Path) -> None:
    """All images, as Mask R-CNN's loss reads them, and with boxes around bitmasks."""
    for recompute_boxes in (False, True):
        mapper = DatasetMapper(
            True,
            augmentations=[],
            image_format="RGB",
            use_instance_mask=True,
            recompute_boxes=recompute_boxes,
        )
        for record in data.records:
            path = folder / "images" / f"{record['height']}_{record['width']}.png"
            if record["height"] > 300 or record["width"] > 300:
                continue
            if not path.exists():
                _write_image(path, record["height"], record["width"])
            objects = mapper({**record, "file_name": str(path)})["instances"]
            if len(objects):
                objects.gt_masks.crop_and_resize(objects.gt_boxes.tensor, 28)


def _write_image(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(path)


def _read_or_refuse(content: object) -> CocoData | None:
    try:
        data = parse_coco(content, "a.json")
        return with_masks(data) if data.has_annotations else data
    except ValueError as error:
        if "a.json" in str(error):
            return None
        raise


@pytest.mark.parametrize("kind", SAMPLES)
def test_any_fault_is_refused_or_does_no_harm(kind: str, tmp_path_factory) -> None:
    """Beyond the list above; exact predictions of what training sees score 100."""
    folder = tmp_path_factory.mktemp("faults")

    @settings(max_examples=120, deadline=None)
    @given(content=faulty(SAMPLES[kind]))
    def check(content: object) -> None:
        before = copy.deepcopy(content)
        data = _read_or_refuse(content)
        if data is None:
            return
        assert repr(content) == repr(before)
        if not data.has_annotations:
            return
        _map(data, folder)
        found = _exact(data)
        api = coco_api(data, masks=True)
        evaluate = evaluate_lvis if kind == "lvis" else evaluate_detections
        for task in ("bbox", "segm") if found else ():
            figures = evaluate(api, found, task, max_dets_per_image=100)
            assert figures.counts.sum() <= len(found)
            if figures.counts.any():
                assert figures.summary()["AP"] == pytest.approx(100)

    check()
