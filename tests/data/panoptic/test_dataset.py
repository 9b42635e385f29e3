import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic
from panoptic_samples import (
    CLASSES,
    MAPS,
    NAMES,
    NUM_THINGS,
    PanopticFiles,
    make_content,
    some_ids,
    write_map,
    write_panoptic,
)
from PIL import Image

from vitadapter.data.panoptic import (
    load_panoptic_dataset,
    panoptic_metadata,
    register_panoptic,
)


@pytest.fixture
def files(tmp_path: Path) -> PanopticFiles:
    return write_panoptic(tmp_path, MAPS)


def test_files_of_ones_own(files: PanopticFiles) -> None:
    records = load_panoptic_dataset("own", *files, **CLASSES)
    assert [Path(str(r["pan_seg_file_name"])).name for r in records] == ["a.png", "b.png", "c.png"]
    segments = {s["id"]: s for s in records[0]["segments_info"]}
    assert {i: s["category_id"] for i, s in segments.items()} == {
        5: 0,
        66000: 1,
        9: 1,
        70000: 2,
        300: 3,
    }
    assert {i for i, s in segments.items() if s["isthing"]} == {5, 66000, 9}
    assert {i for i, s in segments.items() if s["iscrowd"]} == {9}


def test_catalogs_serve_detectron2(files: PanopticFiles) -> None:
    name = register_panoptic("own", *files, **CLASSES)
    assert register_panoptic("own", *files, **CLASSES) == name
    assert len(DatasetCatalog.get(name)) == 3
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == NAMES[:2]
    assert metadata.stuff_classes == NAMES
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 7: 1}
    assert metadata.stuff_dataset_id_to_contiguous_id == {3: 2, 9: 3}
    assert metadata.get("json_file") is None
    # A corrected file is another data set.
    content = make_content(MAPS)
    content["categories"][1]["name"] = "clouds"
    Path(files.json_file).write_text(json.dumps(content))
    other = register_panoptic("own", *files, **CLASSES)
    assert MetadataCatalog.get(other).stuff_classes[2] == "clouds"


def test_registered_name(files: PanopticFiles, tmp_path: Path) -> None:
    """As Detectron2 registers COCO; its own numbers of the classes are not taken over."""
    metadata = {
        "thing_dataset_id_to_contiguous_id": {7: 0, 1: 1},
        "stuff_dataset_id_to_contiguous_id": {3: 2, 9: 3},
    }
    name, things = f"set_{tmp_path.name}", tmp_path / "things.json"
    register_coco_panoptic(
        name, metadata, files.image_root, files.panoptic_root, files.json_file, str(things)
    )
    assert load_panoptic_dataset(name, **CLASSES) == load_panoptic_dataset("own", *files, **CLASSES)
    assert MetadataCatalog.get(register_panoptic(name, **CLASSES)).get("json_file") is None
    things.write_text("{}")
    registered = register_panoptic(name, **CLASSES)
    assert MetadataCatalog.get(registered).json_file == str(things)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"json_file": "x.json"}, r"file x\.json does not exist: set dataset\.test\.json_file"),
        ({"json_file": None}, r"needs dataset\.test\.json_file=\.\.\."),
        ({"panoptic_root": "nowhere"}, r"folder nowhere does not exist.*panoptic_root"),
        ({"image_root": "nowhere"}, r"folder nowhere does not exist.*test\.image_root"),
        ({"instances_json": "x.json"}, r"x\.json does not exist.*test\.instances_json"),
        ({"num_classes": 5}, r"4 classes, of which 2 are things.*dataset\.num_classes=4"),
        ({"num_things": 3}, r"4, of which 3 are things: set .* dataset\.num_things=2"),
        ({"role": "val"}, "role must be one of"),
    ],
)
def test_wrong_arguments(files: PanopticFiles, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_panoptic("own", **(files._asdict() | CLASSES | {"role": "test"} | change))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coco_2017_val_panoptik", r"not a known data set \(similar names: .*coco_2017_val"),
        ("coco_2017_val", "is not a panoptic data set"),
        ("coco_2017_val_panoptic", r"part of the data set .* does not exist.*DETECTRON2_DATASETS"),
    ],
)
def test_names_that_cannot_be_used(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_panoptic(name, **CLASSES)


def _damage(kind: str, files: PanopticFiles) -> None:
    first = Path(files.panoptic_root, "a.png")
    if kind == "no map":
        first.unlink()
    elif kind == "no image":
        Path(files.image_root, "b.jpg").unlink()
    elif kind == "size":
        write_map(first, some_ids(0, (48, 65)))
    elif kind == "palette":
        Image.new("RGB", (64, 48)).convert("P").save(first)
    elif kind == "segment":
        write_map(first, np.where(MAPS["a"] == 5, 6, MAPS["a"]))
    else:
        for path in Path(files.image_root).iterdir():
            Image.new("RGB", (9, 9)).save(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no map", r"1 of the 3 maps .*a\.png.*dataset\.train\.panoptic_root"),
        ("no image", r"1 of the 3 images .*b\.jpg.*dataset\.train\.image_root"),
        ("size", r"a\.png must have its image's .* \(48, 64\), got \(48, 65\)"),
        ("palette", r"a\.png must be an RGB image"),
        ("segment", r"a\.png has segments that its annotation does not list: 6"),
        ("images", r"none of the 3 images of 'own' .*dataset\.train\.image_root"),
    ],
)
def test_faults_of_files_are_named(files: PanopticFiles, kind: str, message: str) -> None:
    _damage(kind, files)
    with pytest.raises(ValueError, match=message):
        load_panoptic_dataset("own", *files, **CLASSES)


def test_metadata_needs_no_images(files: PanopticFiles) -> None:
    metadata = panoptic_metadata("own", files.json_file, NUM_THINGS)
    assert (metadata.thing_classes, metadata.stuff_classes) == (NAMES[:2], NAMES)
    builtin = panoptic_metadata("coco_2017_val_panoptic", None, 80)
    assert len(builtin.thing_classes) == 80
    assert builtin.stuff_classes[80] == "banner"
    assert panoptic_metadata("nothing", "nowhere.json", 2).get("stuff_classes") is None
