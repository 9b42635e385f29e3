import json
import logging
from pathlib import Path

import pytest
from coco_samples import make_content, rle_of, write_coco
from detectron2.data import DatasetCatalog, MetadataCatalog

from vitadapter.data.coco import coco_metadata, load_coco_dataset, register_coco


def load(folder: Path, content: dict, **options) -> list[dict]:
    options = {"num_classes": 2, **options}
    return load_coco_dataset("unused", *write_coco(folder, content), **options)


def test_loads_what_the_json_says(tmp_path: Path) -> None:
    content = make_content(images=3)
    records = load(tmp_path, content)
    assert [Path(r["file_name"]).name for r in records] == ["000.png", "001.png", "002.png"]
    assert [a["bbox"] for r in records for a in r["annotations"]] == [
        a["bbox"] for a in content["annotations"]
    ]
    assert [a["category_id"] for a in records[0]["annotations"]] == [0, 1]


def test_class_ids_with_gaps_become_contiguous(tmp_path: Path) -> None:
    content = make_content()
    for category, new_id in zip(content["categories"], (90, 7), strict=True):
        category["id"] = new_id
    for annotation in content["annotations"]:
        annotation["category_id"] = {1: 90, 2: 7}[annotation["category_id"]]
    records = load(tmp_path, content)
    assert [a["category_id"] for a in records[0]["annotations"]] == [1, 0]


def test_registering_again_gives_the_same_name_until_the_file_changes(tmp_path: Path) -> None:
    content = make_content()
    paths = write_coco(tmp_path, content)
    name = register_coco("unused", *paths)
    assert register_coco("unused", *paths) == name
    assert name in DatasetCatalog
    content["categories"][0]["name"] = "renamed to something longer"
    assert register_coco("unused", *write_coco(tmp_path, content)) != name
    # Detectron2 refuses new class names under an old name: the corrected file must just work.
    load(tmp_path, content)


def test_registered_name(tmp_path: Path) -> None:
    name = register_coco("unused", *write_coco(tmp_path, make_content()))
    assert len(load_coco_dataset(name, num_classes=2)) == 4


@pytest.mark.parametrize("role", ["train", "test"])
def test_missing_files_name_the_override(tmp_path: Path, role: str) -> None:
    json_file, image_root = write_coco(tmp_path, make_content())
    options = {"num_classes": 2, "role": role}
    with pytest.raises(ValueError, match=rf"nowhere.json.*dataset\.{role}\.json_file="):
        load_coco_dataset("x", "nowhere.json", image_root, **options)
    with pytest.raises(ValueError, match=rf"dataset\.{role}\.image_root="):
        load_coco_dataset("x", json_file, "nowhere", **options)
    with pytest.raises(ValueError, match=rf"dataset\.{role}\.image_root="):
        load_coco_dataset("x", json_file, **options)
    with pytest.raises(ValueError, match=rf"dataset\.{role}\.json_file="):
        load_coco_dataset("x", None, image_root, **options)


def test_names_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"coco_2017_trian.*coco_2017_train.*json_file="):
        load_coco_dataset("coco_2017_trian", num_classes=80)
    name = "coco_2017_val"
    assert not Path(MetadataCatalog.get(name).json_file).exists()
    with pytest.raises(ValueError, match=r"DETECTRON2_DATASETS.*dataset\.test\.json_file="):
        load_coco_dataset(name, num_classes=80, role="test")


def test_unknown_role(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="role"):
        load(tmp_path, make_content(), role="val")


@pytest.mark.parametrize("found", [1, 3])
def test_class_count_must_fit(tmp_path: Path, found: int) -> None:
    with pytest.raises(ValueError, match=rf"{found} classes.*predicts 2.*num_classes={found}"):
        load(tmp_path, make_content(classes=found))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not json"),
        ("[1]", "list instead of an object"),
        ('{"annotations": []}', "no images"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "no images"),
        ('{"images": [{"id": 1}], "annotations": []}', "no categories"),
    ],
)
def test_files_that_are_not_coco(tmp_path: Path, text: str, message: str) -> None:
    json_file = tmp_path / "broken.json"
    json_file.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)broken.json.*{message}.*dataset\.train\.json_file"):
        load_coco_dataset("x", str(json_file), str(tmp_path), num_classes=1)


def test_image_without_height_is_not_coco(tmp_path: Path) -> None:
    paths = write_coco(tmp_path, make_content())
    content = make_content()
    del content["images"][0]["height"]
    Path(paths[0]).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="height"):
        load_coco_dataset("x", *paths, num_classes=2)


@pytest.mark.parametrize("role", ["train", "test"])
def test_no_annotations(tmp_path: Path, role: str) -> None:
    content = {**make_content(), "annotations": []}
    with pytest.raises(ValueError, match="no annotations"):
        load(tmp_path, content, role=role)


def test_test_files_made_without_annotations_are_allowed(tmp_path: Path, caplog) -> None:
    json_file, image_root = write_coco(tmp_path, make_content())
    content = make_content()
    del content["annotations"]
    Path(json_file).write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING, "vitadapter"):
        records = load_coco_dataset("x", json_file, image_root, num_classes=2, role="test")
    assert len(records) == 4
    assert "no annotations" in caplog.text
    with pytest.raises(ValueError, match="no annotations"):
        load_coco_dataset("x", json_file, image_root, num_classes=2, role="train")


def test_boxes_without_area_are_dropped_and_counted(tmp_path: Path, caplog) -> None:
    content = make_content()
    content["annotations"][0]["bbox"][2] = 0
    content["annotations"][1]["bbox"][3] = -4
    content["annotations"][2]["bbox"][2] = 0.0
    # NaN is json for Python only, and drawn by write_coco like a number: set afterwards.
    paths = write_coco(tmp_path, content)
    content["annotations"][4]["bbox"][0] = float("inf")
    content["annotations"][5]["bbox"][2] = float("nan")
    Path(paths[0]).write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING, "vitadapter"):
        records = load_coco_dataset("x", *paths, num_classes=2)
    assert [len(r["annotations"]) for r in records] == [0, 1, 0, 2]
    assert len([r for r in caplog.records if "in the image: 5, such as" in r.message]) == 1
    assert len(load_coco_dataset("x", *paths, num_classes=2, filter_empty=True)) == 2


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    content = make_content()
    for annotation in content["annotations"]:
        annotation["bbox"] = [1, 1, 0, 5]
    with pytest.raises(ValueError, match="no annotations that can be used"):
        load(tmp_path, content, filter_empty=True)


@pytest.mark.parametrize(
    "bbox", [None, [1, 2, 3], ["1", "2", "3", "4"], [1, 2, None, 4], "1234", 5, {"x": 1}]
)
def test_annotation_without_box(tmp_path: Path, bbox: object) -> None:
    paths = write_coco(tmp_path, make_content())
    content = make_content()
    content["annotations"][3]["bbox"] = bbox
    if bbox is None:
        del content["annotations"][3]["bbox"]
    Path(paths[0]).write_text(json.dumps(content))
    message = r"json: annotations\[3\] \(id 4, image 2, 001\.png\) must have a box of 4 num"
    with pytest.raises(ValueError, match=message):
        load_coco_dataset("x", *paths, num_classes=2)


def test_box_only_data(tmp_path: Path) -> None:
    content = make_content(masks="none")
    with pytest.raises(ValueError, match=r"none of the 8 annotations.*faster_rcnn_"):
        load(tmp_path, content)
    content["annotations"][0]["segmentation"] = []  # as many annotation tools write it
    assert sum(len(r["annotations"]) for r in load(tmp_path, content, masks=False)) == 8


def test_single_annotations_without_mask_are_dropped_and_counted(tmp_path: Path, caplog) -> None:
    content = make_content()
    del content["annotations"][0]["segmentation"]
    with caplog.at_level(logging.WARNING, "vitadapter"):
        records = load(tmp_path, content)
    assert [len(r["annotations"]) for r in records] == [1, 2, 2, 2]
    assert "dropped annotations without a mask: 1, namely" in caplog.text
    assert [len(r["annotations"]) for r in load(tmp_path, content, masks=False)] == [2, 2, 2, 2]


def test_mask_of_another_size_than_the_image(tmp_path: Path) -> None:
    content = make_content(masks="rle")
    content["annotations"][2]["segmentation"] = rle_of((1, 1, 4, 4), 50)
    with pytest.raises(ValueError, match=r"001.png.*\[50, 50\].*\[64, 64\]"):
        load(tmp_path, content)


def test_missing_images_are_counted_and_named(tmp_path: Path) -> None:
    paths = write_coco(tmp_path, make_content())
    for name in ("001.png", "003.png"):
        Path(paths[1], name).unlink()
    with pytest.raises(ValueError, match=r"2 of the 4 images.*001.png.*003.png.*image_root="):
        load_coco_dataset("x", *paths, num_classes=2)


def test_images_in_folders_below(tmp_path: Path) -> None:
    content = make_content()
    paths = write_coco(tmp_path, content)
    Path(paths[1], "a").mkdir()
    for image in content["images"]:
        Path(paths[1], image["file_name"]).rename(Path(paths[1], "a", image["file_name"]))
        image["file_name"] = f"a/{image['file_name']}"
    Path(paths[0]).write_text(json.dumps(content))
    assert len(load_coco_dataset("x", *paths, num_classes=2)) == 4


def test_a_set_without_a_single_readable_image_is_refused(tmp_path: Path) -> None:
    paths = write_coco(tmp_path, make_content())
    for path in sorted(Path(paths[1]).iterdir())[:3]:
        path.write_bytes(b"not an image")
    assert len(load_coco_dataset("x", *paths, num_classes=2)) == 4
    Path(paths[1], "003.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 4 images of .*000.png"):
        load_coco_dataset("x", *paths, num_classes=2)


def test_the_images_that_training_is_left_with_are_read(tmp_path: Path) -> None:
    content = make_content()
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] < 3]
    paths = write_coco(tmp_path, content)
    for name in ("000.png", "001.png"):
        Path(paths[1], name).write_bytes(b"not an image")
    options = {"num_classes": 2, "filter_empty": True}
    with pytest.raises(ValueError, match=r"none of the 2 images of .*000.png"):
        load_coco_dataset("x", *paths, **options)
    Path(paths[1], "003.png").unlink()  # nor are the others needed
    write_coco(tmp_path, {**content, "images": content["images"][:3]})
    Path(paths[0]).write_text(json.dumps(content))
    assert len(load_coco_dataset("x", *paths, **options)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox_mode": None}, "must have XYXY_ABS or XYWH_ABS as bbox_mode, got None"),
        (
            {"segmentation": {"counts": b"11"}},
            r"has a mask of the size None, .* \[64, 64\]",
        ),
    ],
)
def test_malformed_annotations_of_a_registered_list(
    tmp_path: Path, change: dict, message: str
) -> None:
    records = DatasetCatalog.get(register_coco("x", *write_coco(tmp_path, make_content())))
    annotation = {**records[0]["annotations"][0], **change}
    records[0]["annotations"][0] = {k: v for k, v in annotation.items() if v is not None}
    DatasetCatalog.register("test_coco_malformed_list", lambda: records)
    try:
        with pytest.raises(
            ValueError, match=rf"malformed.*annotations\[0\] of .*000\.png {message}"
        ):
            load_coco_dataset("test_coco_malformed_list", num_classes=2)
    finally:
        DatasetCatalog.remove("test_coco_malformed_list")


def test_loading_leaves_a_registered_list_untouched(tmp_path: Path) -> None:
    content = make_content()
    content["annotations"][0]["bbox"][2] = 0
    records = DatasetCatalog.get(register_coco("x", *write_coco(tmp_path, content)))
    DatasetCatalog.register("test_coco_shared_list", lambda: records)
    try:
        loaded = load_coco_dataset("test_coco_shared_list", num_classes=2)
        assert len(loaded[0]["annotations"]) == 1
        assert len(records[0]["annotations"]) == 2
        with pytest.raises(ValueError, match="num_classes=2"):
            load_coco_dataset("test_coco_shared_list", num_classes=1)
    finally:
        DatasetCatalog.remove("test_coco_shared_list")


def test_metadata_without_loading_the_data(tmp_path: Path) -> None:
    json_file, image_root = write_coco(tmp_path, make_content())
    assert coco_metadata("x", json_file, image_root).thing_classes == ["class0", "class1"]
    assert coco_metadata("x", json_file).thing_classes == ["class0", "class1"]
    assert len(coco_metadata("coco_2017_val").thing_classes) == 80
    assert coco_metadata("x", "nowhere.json").get("thing_classes") is None
    assert coco_metadata("no such data set").get("thing_classes") is None


@pytest.mark.parametrize(
    "text", ["{", "[1]", "{}", '{"categories": [{"name": "a"}]}', '{"categories": [5]}']
)
def test_metadata_of_a_broken_file_has_no_classes(tmp_path: Path, text: str, caplog) -> None:
    json_file = tmp_path / "broken.json"
    json_file.write_text(text)
    with caplog.at_level(logging.WARNING, "vitadapter"):
        assert coco_metadata("x", str(json_file)).get("thing_classes") is None
    assert "broken.json" in caplog.text
