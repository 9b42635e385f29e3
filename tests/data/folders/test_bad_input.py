"""Folders as people have them: mixed, incomplete, and from other machines."""

import json
import re
import unicodedata
from itertools import pairwise
from pathlib import Path

import folder_formats as formats
import pytest
import yaml
from folder_formats import Splits
from folder_samples import load, tiny_config
from PIL import Image

BOXES = "dataloader.train.dataset.masks=False"


@pytest.fixture
def yolo(root: Path, splits: Splits) -> Path:
    formats.write_yolo(root, splits, polygons=False)
    return root


@pytest.fixture
def coco(root: Path, splits: Splits) -> Path:
    formats.write_roboflow_coco(root, splits)
    return root


def names_of(records: list[dict[str, object]]) -> list[str]:
    return [Path(str(record["file_name"])).name for record in records]


def change_json(path: Path, **lists: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **lists}))


def test_two_formats(yolo: Path, splits: Splits) -> None:
    formats.write_voc(yolo, splits)
    with pytest.raises(ValueError, match=r"several formats, YOLO .* and Pascal VOC .*exclude"):
        tiny_config(yolo)
    exclude = "dataset.exclude=[ImageSets,Annotations,JPEGImages]"
    assert names_of(load(tiny_config(yolo, exclude, BOXES))[1]) == ["004.png", "005.png"]
    # One pattern may be given without brackets.
    with pytest.raises(ValueError, match="several formats"):
        tiny_config(yolo, "dataset.exclude=ImageSets")


def test_categories_alone_are_no_annotations(yolo: Path) -> None:
    """Label Studio's YOLO export has them in a notes.json."""
    notes = {"categories": [{"id": 0, "name": "class0"}], "info": {"version": "1.0"}}
    (yolo / "notes.json").write_text(json.dumps(notes, indent=2))
    assert names_of(load(tiny_config(yolo, BOXES))[1]) == ["004.png", "005.png"]


def test_no_format(root: Path) -> None:
    root.mkdir()
    Image.new("RGB", (8, 8)).save(root / "1.png")
    (root / "annotations.json").touch()
    with pytest.raises(ValueError, match=r"1 image, but no annotations.*annotations\.json"):
        tiny_config(root)
    with pytest.raises(ValueError, match=r"must be a folder.*set dataset\.root"):
        tiny_config(root / "absent")


def test_classes_of_another_split(coco: Path) -> None:
    path = coco / "valid" / "_annotations.coco.json"
    classes = [{"id": 1, "name": "class1"}, {"id": 2, "name": "class0"}]
    change_json(path, categories=classes)
    cfg = tiny_config(coco)
    # As names say, not numbers.
    train, test = load(cfg)
    assert [a["category_id"] for a in train[0]["annotations"]] == [0, 1]
    assert [a["category_id"] for a in test[0]["annotations"]] == [1, 0]
    change_json(path, categories=[*classes, {"id": 3, "name": "bird"}])
    with pytest.raises(ValueError, match=r"has the classes bird, which .* does not have"):
        tiny_config(coco)


def test_class_beyond_the_names(yolo: Path) -> None:
    label = yolo / "train" / "labels" / "001.txt"
    label.write_text("0 0.5 0.5 0.1 0.1\n7 0.5 0.5 0.1 0.1\n")
    with pytest.raises(ValueError, match=r"line 2 of train/labels/001\.txt has the class 7"):
        tiny_config(yolo)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1", "4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.2", "4 numbers"),
        ("0 50 50 10 10", "from 0 to 1"),
        ("0 nan 0.5 0.1 0.1", "from 0 to 1"),
        ("nan 0.5 0.5 0.1 0.1", "the class nan"),
        ("cat 0.5 0.5 0.1 0.1", "consist of numbers"),
    ],
)
def test_bad_line(yolo: Path, line: str, message: str) -> None:
    (yolo / "train" / "labels" / "000.txt").write_text(line)
    with pytest.raises(ValueError, match=message):
        tiny_config(yolo)


def test_number_of_names(yolo: Path) -> None:
    path = yolo / "data.yaml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "nc": 3}))
    with pytest.raises(ValueError, match="nc does not fit: it has 2 names"):
        tiny_config(yolo)
    path.write_text(yaml.safe_dump({**content, "names": {0: "a", 2: "b"}}))
    with pytest.raises(ValueError, match=r"numbered 0\.\.1"):
        tiny_config(yolo)
    bomb = ["a: &a [x, x, x, x, x, x, x, x]"]
    bomb += [f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]" for a, b in pairwise("abcdefghijkl")]
    path.write_text("\n".join([*bomb, "names: *l"]))
    with pytest.raises(ValueError, match=r"data\.yaml: names must be a list of texts"):
        tiny_config(yolo)
    path.write_text("names: [")
    with pytest.raises(ValueError, match=r"data\.yaml cannot be read"):
        tiny_config(yolo)


@pytest.mark.parametrize("path", ["/home/somebody/data/x/train/images", "C:\\x\\train\\images"])
def test_paths_of_another_machine(yolo: Path, path: str) -> None:
    content = yaml.safe_load((yolo / "data.yaml").read_text())
    content |= {"path": "/home/somebody/data/x", "train": path, "val": "valid/images"}
    (yolo / "data.yaml").write_text(yaml.safe_dump(content))
    train, test = load(tiny_config(yolo, BOXES))
    assert (len(train), len(test)) == (4, 2)


def test_lists_of_images(yolo: Path) -> None:
    content = yaml.safe_load((yolo / "data.yaml").read_text())
    (yolo / "train.txt").write_text("/other/x/train/images/001.png\n./valid/images/004.png\n")
    (yolo / "val.txt").write_text("train/images/002.png\n")
    content |= {"train": "train.txt", "val": "val.txt"}
    (yolo / "data.yaml").write_text(yaml.safe_dump(content))
    train, test = load(tiny_config(yolo, BOXES))
    assert names_of(train) == ["001.png", "004.png"]
    assert names_of(test) == ["002.png"]
    (yolo / "val.txt").write_text("train/images/absent.png\n")
    with pytest.raises(ValueError, match=r"val\.txt lists train/images/absent\.png"):
        tiny_config(yolo)


def test_lists_without_a_yaml_file(yolo: Path) -> None:
    """As Darknet has them."""
    (yolo / "data.yaml").unlink()
    with pytest.raises(ValueError, match=r"neither a data\.yaml with names nor a classes\.txt"):
        tiny_config(yolo)
    (yolo / "classes.txt").write_text("class0\nclass1\n")
    assert len(load(tiny_config(yolo, BOXES))[0]) == 4
    (yolo / "train.txt").write_text("data/train/images/001.png\n")
    (yolo / "val.txt").write_text("data/train/images/002.png\n")
    train, test = load(tiny_config(yolo, BOXES))
    assert (names_of(train), names_of(test)) == (["001.png"], ["002.png"])


def test_images_without_label_file(yolo: Path, caplog: pytest.LogCaptureFixture) -> None:
    (yolo / "valid" / "labels" / "004.txt").unlink()
    _, test = load(tiny_config(yolo, BOXES))
    assert "1 of 2 images of dataset.test without a label file, taken for" in caplog.text
    assert [len(record["annotations"]) for record in test] == [0, 2]
    _, test = load(tiny_config(yolo, BOXES, "dataset.unlabelled=skip"))
    assert names_of(test) == ["005.png"]
    assert "1 of 2 images of dataset.test without a label file, left out" in caplog.text
    for name in ("000", "001", "002"):
        (yolo / "train" / "labels" / f"{name}.txt").unlink()
    with pytest.raises(ValueError, match=r"3 of 4 images .*unlabelled=empty .*=skip"):
        tiny_config(yolo)
    train, _ = load(tiny_config(yolo, BOXES, "dataset.unlabelled=empty"))
    assert len(train) == 1  # training leaves out what shows no object
    with pytest.raises(ValueError, match="must be one of empty, skip or null, got 'both'"):
        tiny_config(yolo, "dataset.unlabelled=both")


def test_label_files_without_image(yolo: Path, caplog: pytest.LogCaptureFixture) -> None:
    (yolo / "train" / "images" / "000.png").unlink()
    train, _ = load(tiny_config(yolo, BOXES))
    assert len(train) == 3
    assert "1 of 6 label files without an image (train/labels/000.txt)" in caplog.text
    for name in ("001", "002", "003"):
        (yolo / "train" / "images" / f"{name}.png").unlink()
    with pytest.raises(ValueError, match="4 of 6 label files without an image"):
        tiny_config(yolo)


def test_images_that_a_json_file_names_are_missing(
    coco: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (coco / "train" / "000.png").unlink()
    assert len(load(tiny_config(coco))[0]) == 3
    assert (
        "1 of 4 images that train/_annotations.coco.json names, but dataset.root lacks"
        in caplog.text
    )
    for name in ("001", "002"):
        (coco / "train" / f"{name}.png").unlink()
    with pytest.raises(ValueError, match=r"3 of 4 images .* set dataset\.root"):
        tiny_config(coco)


def test_images_anywhere_and_names_in_any_form(root: Path, splits: Splits) -> None:
    composed, decomposed = (unicodedata.normalize(form, "süß 1.png") for form in ("NFC", "NFD"))
    for split, (content, images) in splits.items():
        (root / "deep" / "pictures" / split).mkdir(parents=True)
        for number, image in enumerate(content["images"]):
            name = decomposed if number == 0 else image["file_name"]
            target = root / "deep" / "pictures" / split / name
            target.write_bytes((images / image["file_name"]).read_bytes())
            image["file_name"] = f"C:\\data\\{composed if number == 0 else image['file_name']}"
        (root / f"instances_{split}2017.json").write_text(json.dumps(content))
    train, test = load(tiny_config(root))
    assert names_of(train) == [decomposed, "001.png", "002.png", "003.png"]
    assert names_of(test) == [decomposed, "005.png"]


def test_symlink_loops(yolo: Path) -> None:
    (yolo / "train" / "loop").symlink_to(yolo)
    (yolo / "nowhere.png").symlink_to(yolo / "absent.png")
    (yolo / "itself.txt").symlink_to("itself.txt")
    train, test = load(tiny_config(yolo, BOXES))
    assert (len(train), len(test)) == (4, 2)


@pytest.mark.parametrize("image", ["train/images/000.png", "valid/images/004.png"])
def test_empty_files(yolo: Path, image: str) -> None:
    """In each split alike."""
    (yolo / "valid" / "labels" / "004.txt").write_bytes(b"")
    _, test = load(tiny_config(yolo, BOXES))
    assert [len(record["annotations"]) for record in test] == [0, 2]
    (yolo / image).rename(yolo / image.replace(".png", "[1].png"))
    image = image.replace(".png", "[1].png")
    (yolo / image).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"1 unreadable image of 6 .*{re.escape(image)}.* empty"):
        tiny_config(yolo)
    train, test = load(tiny_config(yolo, BOXES, f"dataset.exclude=['{image}']"))
    assert len(train) + len(test) == 5


def test_settings_without_effect(yolo: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(tiny_config(yolo, BOXES))
    assert "no effect" not in caplog.text
    load(tiny_config(yolo, BOXES, "dataset.split.fraction=0.3", "dataset.exclude=['*.tmp']"))
    assert "dataset.split has no effect, since dataset.root has the split val" in caplog.text
    assert re.search(r"dataset\.exclude: no file in .* fits \*\.tmp", caplog.text)


def test_empty_json_file(coco: Path) -> None:
    (coco / "valid" / "_annotations.coco.json").write_bytes(b"")
    with pytest.raises(ValueError, match=r"valid/_annotations\.coco\.json is not json"):
        tiny_config(coco)


def test_two_files_of_a_split(coco: Path) -> None:
    (coco / "train" / "more.json").write_bytes(
        (coco / "train" / "_annotations.coco.json").read_bytes()
    )
    with pytest.raises(ValueError, match=r"both annotations of the split train.*exclude"):
        tiny_config(coco)
    assert len(load(tiny_config(coco, "dataset.exclude=more.json"))[0]) == 4


def test_images_of_one_name(root: Path, splits: Splits) -> None:
    formats.write_voc(root, splits)
    (root / "JPEGImages" / "old").mkdir()
    Image.new("RGB", (64, 64)).save(root / "JPEGImages" / "old" / "000.png")
    # The one beside the others is meant, the other has no label file.
    assert len(load(tiny_config(root, BOXES))[0]) == 4
    Image.new("RGB", (64, 64)).save(root / "JPEGImages" / "000.jpg")
    with pytest.raises(ValueError, match=r"would both have the label file Annotations/000\.xml"):
        tiny_config(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not xml"),
        ("<annotation><object></object></annotation>", "object without a name"),
        ("<annotation><object><name>a</name></object></annotation>", "'a' without bndbox"),
        (
            "<annotation><object><name>a</name><bndbox><xmin>x</xmin></bndbox></object>"
            "</annotation>",
            "'x' as xmin",
        ),
        (
            "<annotation><object><name>bird</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
            "<xmax>4</xmax><ymax>4</ymax></bndbox></object></annotation>",
            r"the class 'bird', which is none of the 2 classes that the folder names",
        ),
    ],
)
def test_bad_xml(root: Path, splits: Splits, text: str, message: str) -> None:
    formats.write_voc(root, splits)
    (root / "Annotations" / "001.xml").write_text(text)
    with pytest.raises(ValueError, match=message):
        tiny_config(root)


def test_corners_from_zero(root: Path, splits: Splits) -> None:
    """Programs that write coordinates, not numbers of pixels, give themselves away."""
    formats.write_voc(root, splits)
    box = "<bndbox><xmin>0.5</xmin><ymin>0</ymin><xmax>8</xmax><ymax>4</ymax></bndbox>"
    (root / "Annotations" / "000.xml").write_text(
        f"<annotation><object><name>class0</name>{box}</object></annotation>"
    )
    train, _ = load(tiny_config(root, BOXES))
    assert train[0]["annotations"][0]["bbox"] == [0.5, 0, 7.5, 4]
    content, _ = splits["train"]
    x, y, w, h = content["annotations"][2]["bbox"]
    assert train[1]["annotations"][0]["bbox"] == [x + 1, y + 1, w - 1, h - 1]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (None, "no list of shapes"),
        ([{"label": "class0", "points": [[0, 0], [1, float("inf")]]}], "not two numbers"),
        ([{"label": "", "points": [[0, 0]]}], "the label ''"),
        ([{"label": "class0", "points": []}], "without points"),
        (
            [{"label": "class0", "shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": "AA"}],
            "no PNG",
        ),
    ],
)
def test_bad_labelme(root: Path, splits: Splits, shapes: object, message: str) -> None:
    formats.write_labelme(root, splits)
    change_json(root / "train" / "001.json", shapes=shapes)
    with pytest.raises(ValueError, match=message):
        tiny_config(root)


def test_other_shapes_of_labelme(
    root: Path, splits: Splits, caplog: pytest.LogCaptureFixture
) -> None:
    formats.write_labelme(root, splits)
    shapes = [
        {"label": "class0", "shape_type": "circle", "points": [[20, 20], [30, 20]]},
        {"label": "class1", "shape_type": "rectangle", "points": [[9, 8], [3, 2]]},
        {"label": "class1", "shape_type": "point", "points": [[9, 8]]},
        {"label": "_background_", "points": [[0, 0], [9, 0], [9, 9]]},
    ]
    change_json(root / "train" / "000.json", shapes=shapes)
    train, _ = load(tiny_config(root, BOXES))
    boxes = sorted(a["bbox"] for a in train[0]["annotations"])
    assert boxes[0] == [3, 2, 6, 6]
    assert boxes[1] == pytest.approx([10, 10, 20, 20])
    assert "left out shapes without area (points and lines): 1, namely" in caplog.text
    load(tiny_config(root))
    assert "dropped annotations without a mask: 1, namely" in caplog.text
