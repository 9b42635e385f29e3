"""Our reader against Detectron2's, and files that neither could use."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES, _get_builtin_metadata
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from panoptic_samples import NAMES, Content, make_content, some_ids, write_panoptic

from vitadapter.data.panoptic_json import read_panoptic_json, read_panoptic_records

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


def test_images_may_have_any_suffix(tmp_path: Path) -> None:
    files = write_panoptic(tmp_path, MAPS, make_content(MAPS, suffix=".png"))
    assert [Path(r["file_name"]).name for r in read_panoptic_records(*files)] == ["a.png", "b.png"]


def _segment(content: Content) -> dict[str, object]:
    return content["annotations"][1]["segments_info"][0]


FAULTS = {
    "category": (
        lambda c: _segment(c).update(category_id=4),
        r"segment 5 of b\.png in .*panoptic\.json has the unknown category 4",
    ),
    "twice": (
        lambda c: _segment(c).update(id=300),
        r"segment 300 of b\.png in .* must have an id of its own",
    ),
    "void": (lambda c: _segment(c).update(id=0), r"segment 0 of b\.png .* in 1 \.\. 2\^24 - 1"),
    "large": (lambda c: _segment(c).update(id=2**24), r"segment 16777216 of b\.png"),
    "image": (lambda c: c["images"].pop(), r"panoptic\.json is not in COCO's panoptic .*2"),
    "no id": (lambda c: _segment(c).pop("id"), r"not in COCO's panoptic format: KeyError\('id'\)"),
    "instances": (
        lambda c: c["annotations"][0].pop("segments_info"),
        "its annotations have no segments_info",
    ),
    "no thing": (lambda c: c["categories"][0].pop("isthing"), r"format: KeyError\('isthing'\)"),
    "categories": (
        lambda c: c["categories"].append({"id": 3, "name": "x", "isthing": 1}),
        "two categories of one id",
    ),
    "no annotations": (lambda c: c["annotations"].clear(), "it has no annotations"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_named(tmp_path: Path, kind: str) -> None:
    damage: Callable[[Content], object]
    damage, message = FAULTS[kind]
    content = copy.deepcopy(make_content(MAPS))
    damage(content)
    with pytest.raises(ValueError, match=message):
        read_panoptic_records(*write_panoptic(tmp_path, MAPS, content))


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not json"), ("[]", "a json list instead of an object")]
)
def test_not_panoptic_at_all(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=rf"x\.json.*{message}"):
        read_panoptic_json(str(tmp_path / "x.json"))
