"""Our reader against Detectron2's, and files that neither could use."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES, _get_builtin_metadata
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from hypothesis import given, settings
from json_mutations import faulty
from panoptic_samples import NAMES, NUM_CLASSES, Content, make_content, some_ids, write_panoptic

from vitadapter.data.panoptic import PanopticDatasetMapper
from vitadapter.data.panoptic.annotations import read_panoptic_json, read_panoptic_records
from vitadapter.data.panoptic.maps import read_panoptic_png, rgb_to_id
from vitadapter.evaluation.panoptic_quality import count_matches

MAPS = {"a": some_ids(0), "b": some_ids(1, (40, 56))}


def test_classes_are_things_first(tmp_path: Path) -> None:
    _, classes = read_panoptic_json(write_panoptic(tmp_path, MAPS).json_file)
    assert list(classes.names) == NAMES
    assert classes.dataset_ids == (1, 7, 3, 9)
    assert classes.num_things == 2


def test_cocos_classes_are_numbered_as_in_detectron2(tmp_path: Path) -> None:
    content = make_content(MAPS) | {"categories": COCO_CATEGORIES[::-1]}
    _, classes = read_panoptic_json(write_panoptic(tmp_path, MAPS, content).json_file)
    metadata = _get_builtin_metadata("coco_panoptic_standard")
    assert list(classes.names) == metadata["stuff_classes"]
    numbered = dict(zip(classes.dataset_ids, range(133), strict=True))
    things, stuff = (metadata[f"{k}_dataset_id_to_contiguous_id"] for k in ("thing", "stuff"))
    assert numbered == things | stuff
    assert classes.num_things == len(things)


def test_records_are_those_of_detectron2(tmp_path: Path) -> None:
    files = write_panoptic(tmp_path, MAPS)
    metadata = {
        "thing_dataset_id_to_contiguous_id": {1: 0, 7: 1},
        "stuff_dataset_id_to_contiguous_id": {3: 2, 9: 3},
    }
    expected = load_coco_panoptic_json(
        files.json_file, files.image_root, files.panoptic_root, metadata
    )
    records = read_panoptic_records(*files)
    assert [(r.pop("height"), r.pop("width")) for r in records] == [(48, 64), (40, 56)]
    assert records == expected


def test_names_and_files_that_are_there_twice_are_told(tmp_path: Path, caplog) -> None:
    content = make_content(MAPS)
    read_panoptic_records(*write_panoptic(tmp_path, MAPS, content))
    assert caplog.text == ""
    content["categories"][2]["name"] = "cat"
    content["images"][1]["file_name"] = "a.jpg"
    content["annotations"][1]["file_name"] = "a.png"
    files = write_panoptic(tmp_path, MAPS, content)
    assert len(read_panoptic_records(*files)) == 2
    assert read_panoptic_json(files.json_file)[1].names == ("cat (1)", "cat (7)", "sky", "grass")
    assert "added the id to the names of categories that share their name: 2, " in caplog.text
    assert "ids, each of which has its own annotations: 2, such as" in caplog.text


def test_images_may_have_any_suffix(tmp_path: Path) -> None:
    files = write_panoptic(tmp_path, MAPS, make_content(MAPS, suffix=".png"))
    assert [Path(r["file_name"]).name for r in read_panoptic_records(*files)] == ["a.png", "b.png"]


def _segment(content: Content) -> dict[str, object]:
    return content["annotations"][1]["segments_info"][0]


def _repeat(content: Content, key: str, **changes: object) -> None:
    content[key].append({**content[key][0], **changes})


_PLACE = r"panoptic\.json: annotations\[1\] \(b\.png\)"
FAULTS = {
    "category": (
        lambda c: _segment(c).update(category_id=4),
        _PLACE + ": segment 5 has the unknown category 4",
    ),
    "text": (
        lambda c: _segment(c).update(category_id="7"),
        _PLACE + ": segment 5 has a text as category_id, '7', but the categories have a number, 7",
    ),
    "twice": (
        lambda c: _segment(c).update(id=300),
        _PLACE + ": segment 300 must have an id of its own",
    ),
    "void": (lambda c: _segment(c).update(id=0), r"segment 0 must .* in 1 \.\. 2\^24 - 1"),
    "large": (lambda c: _segment(c).update(id=2**24), "segment 16777216 must"),
    "no id": (lambda c: _segment(c).pop("id"), "segment None must have an id"),
    "crowd": (
        lambda c: _segment(c).update(iscrowd="no"),
        _PLACE + ": segment 5 must have 0 or 1 as iscrowd, got 'no'",
    ),
    "image": (lambda c: c["images"].pop(), _PLACE + " has the unknown image_id 2"),
    "image text": (
        lambda c: c["annotations"][1].update(image_id="2"),
        _PLACE + " has a text as image_id, '2', but the images have a number, 2",
    ),
    "image twice": (
        lambda c: _repeat(c, "images", file_name="z.jpg"),
        r"images have the id 1, images\[0\] \(file_name 'a\.jpg'\) .*'z\.jpg'",
    ),
    "two maps": (
        lambda c: _repeat(c, "annotations", file_name="z.png"),
        r"annotations\[2\] \(z\.png\) is the second of the image 1",
    ),
    "size": (
        lambda c: c["images"][0].update(width="64"),
        r"image 1 must have positive whole numbers as height and width, got 48 and '64'",
    ),
    "outside": (
        lambda c: c["annotations"][1].update(file_name="../b.png"),
        r"annotations\[1\] \(\.\./b\.png\) must have a file_name inside the folder .*panoptic",
    ),
    "no file": (
        lambda c: c["images"][1].update(file_name=None),
        "image 2 must have a text as file_name, got None",
    ),
    "instances": (
        lambda c: c["annotations"][0].pop("segments_info"),
        "its annotations have no segments_info",
    ),
    "no thing": (lambda c: c["categories"][0].pop("isthing"), "category 7 must .* isthing"),
    "categories": (
        lambda c: _repeat(c, "categories", name="x"),
        "two of the categories have the id 7, .*'cat'.*'x'",
    ),
    "no annotations": (lambda c: c["annotations"].clear(), "panoptic.json has no annotations"),
    "null": (lambda c: c.update(categories=None), "must have a list as its categories, got null"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_named(tmp_path: Path, kind: str) -> None:
    damage: Callable[[Content], object]
    damage, message = FAULTS[kind]
    content = copy.deepcopy(make_content(MAPS))
    files = write_panoptic(tmp_path, MAPS, content)
    damage(content)
    Path(files.json_file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_panoptic_records(*files)


def test_images_without_annotation_are_told(tmp_path: Path, caplog) -> None:
    content = copy.deepcopy(make_content(MAPS))
    del content["annotations"][0]
    (record,) = read_panoptic_records(*write_panoptic(tmp_path, MAPS, content))
    assert record["image_id"] == 2
    assert "left out images that have no annotation: 1, namely a.jpg (id 1)" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not json"), ("[]", "holds a list instead of an object")]
)
def test_not_panoptic_at_all(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=rf"x\.json.*{message}"):
        read_panoptic_json(str(tmp_path / "x.json"))


def test_random_faults_are_refused_by_name(tmp_path: Path) -> None:
    content = make_content(MAPS)
    files = write_panoptic(tmp_path, MAPS, content)
    mapper = PanopticDatasetMapper(True, augmentations=[], image_format="RGB", max_skipped=1000)

    @settings(max_examples=100, deadline=None)
    @given(faults=faulty(content))
    def check(faults: object) -> None:
        Path(files.json_file).write_text(json.dumps(faults))
        try:
            records = read_panoptic_records(*files)
        except ValueError as error:
            if files.json_file not in str(error):
                raise
            return
        for record in records:
            mapped = mapper(record)
            if mapped is None:  # told: no map, or one of another size or with unlisted segments
                continue
            ids = rgb_to_id(read_panoptic_png(record["pan_seg_file_name"]))
            segments = [s for s in record["segments_info"] if (ids == s["id"]).any()]
            # Of several crowds of a class, COCO's program forgives predictions on one alone.
            found = [s for s in segments if not s["iscrowd"]]
            predicted = np.where(np.isin(ids, [s["id"] for s in found]), ids, 0)
            counts = count_matches(ids, segments, predicted, found, NUM_CLASSES)
            assert counts[:, 1:3].sum() == 0

    check()
