"""Data sets by folders and by name: loaded, checked, and refused with the override to change."""

import logging
import re
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from hypothesis import given, settings
from hypothesis import strategies as st
from sem_seg_samples import some_labels, write_labels, write_pairs

from vitadapter.data.sem_seg import load_sem_seg_dataset, register_sem_seg, sem_seg_metadata
from vitadapter.data.sem_seg.layouts import LAYOUTS

MAPS = {"town/b": some_labels(1), "a": some_labels(2)}


def load(images: Path, labels: Path, **options: object) -> list[dict[str, object]]:
    options = {"num_classes": 3, **options}
    return load_sem_seg_dataset("own", str(images), str(labels), **options)


def test_two_folders_are_a_data_set(tmp_path: Path) -> None:
    images, labels = write_pairs(tmp_path, MAPS)
    (images / "notes.txt").write_text("no image")
    records = load(images, labels)
    assert [r["file_name"] for r in records] == [str(images / f) for f in ("a.jpg", "town/b.jpg")]
    assert records[1]["sem_seg_file_name"] == str(labels / "town/b.png")


def test_catalogs_serve_detectron2(tmp_path: Path) -> None:
    images, labels = write_pairs(tmp_path, MAPS)
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    options = {"num_classes": 3, "class_names": str(tmp_path / "classes.txt")}
    name = register_sem_seg("own", str(images), str(labels), **options)
    assert register_sem_seg("own", str(images), str(labels), **options) == name
    assert len(DatasetCatalog.get(name)) == 2
    assert MetadataCatalog.get(name).stuff_classes == ["sky", "road", "car"]
    evaluator = SemSegEvaluator(name)
    assert len(evaluator.input_file_to_gt_file) == 2
    # Other settings are another data set.
    assert register_sem_seg("own", str(images), str(labels), num_classes=4) != name


def test_images_without_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, labels = write_pairs(tmp_path, MAPS)
    (labels / "a.png").unlink()
    assert len(load(images, labels)) == 1
    assert "1 image of 'own' without a label map" in caplog.text
    with pytest.raises(ValueError, match=r"1 test image .*a\.jpg.*dataset\.test\.label_root"):
        load(images, labels, role="test")


def test_label_maps_without_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, labels = write_pairs(tmp_path, MAPS)
    (images / "a.jpg").unlink()
    assert len(load(images, labels)) == 1
    assert f"1 label map of 'own' without an image in {images} ({labels / 'a.png'})" in caplog.text


def test_images_of_one_name(tmp_path: Path) -> None:
    images, labels = write_pairs(tmp_path, MAPS)
    (images / "a.png").write_bytes((images / "a.jpg").read_bytes())
    with pytest.raises(ValueError, match=r"a\.(jpg|png) and .*a\.(png|jpg) have one name"):
        load(images, labels)


def test_surprising_settings_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, labels = write_pairs(tmp_path, MAPS)
    load(images, labels)
    assert caplog.text == ""
    load(images, labels, num_classes=300)
    assert "dataset.ignore_label=255 is a class of 'own'" in caplog.text
    load(images, labels, reduce_zero_label=True)
    assert "if 0 is a class, set dataset.reduce_zero_label=False" in caplog.text


@pytest.mark.parametrize("role", ["train", "test"])
def test_classes_that_no_label_map_has_are_told(
    tmp_path: Path, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Masks of 0 and 255, which train one class and score high."""
    masks = {name: np.where(labels == 1, 255, 0).astype(np.uint8) for name, labels in MAPS.items()}
    images, labels = write_pairs(tmp_path, masks)
    load(images, labels, num_classes=2, role=role)
    (warning,) = caplog.records
    assert (
        "1 of 2 classes are in none of the 2 label maps of 'own' (of 2) read at the start: 1 (1). "
        "The maps have the values 255 (ignored), 0:" in warning.getMessage()
    )


@pytest.mark.parametrize("shift", [False, True])
@settings(max_examples=25, deadline=None)
@given(shown=st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=3))
def test_just_the_absent_classes_are_told(
    shift: bool, shown: list[set[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    maps = {}
    for number, classes in enumerate(shown):
        maps[str(number)] = np.full((4, 8), 255, np.uint8)
        maps[str(number)][0, : len(classes)] = sorted(classes)
        maps[str(number)][0, : len(classes)] += shift
    images, labels = write_pairs(tmp_path_factory.mktemp("own"), maps)
    absent = set(range(5)) - set().union(*shown)
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger = logging.getLogger("vitadapter.data.sem_seg")
    logger.addHandler(handler)
    try:
        load(images, labels, num_classes=5, reduce_zero_label=shift)
    finally:
        logger.removeHandler(handler)
    told = [message for message in told if "are in none of" in message]
    assert len(told) == bool(absent)
    if absent:
        named = told[0].split("start: ")[1].split(". The maps")[0]
        assert named == ", ".join(f"{label + shift} ({label})" for label in sorted(absent))


def test_an_ignored_class_is_not_missed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, labels = write_pairs(tmp_path, {"a": np.array([[0, 1, 2]], np.uint8)})
    load(images, labels, ignore_label=0)
    assert "are in none of" not in caplog.text


def test_unusable_label_maps_beyond_the_first_checks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Skipped in training; an error before the test and not in it."""
    maps = {f"{i:02d}": some_labels(i) for i in range(30)}
    images, labels = write_pairs(tmp_path, maps)
    (labels / "01.png").write_bytes(b"no png")
    assert len(load(images, labels)) == 30
    assert re.search(r"1 of the 30 label maps of 'own' .*01\.png cannot be read", caplog.text)
    with pytest.raises(ValueError, match=r"01\.png cannot be read"):
        load(images, labels, role="test")


def test_files_of_a_mac(tmp_path: Path) -> None:
    """Names in Unicode's other form, endings in capitals, and files that are no images."""
    images, labels = write_pairs(tmp_path, {normalize("NFD", "für"): some_labels()}, ".JPEG")
    (labels / normalize("NFD", "für.png")).rename(labels / normalize("NFC", "für.PNG"))
    for folder in (images, labels):
        for name in ("._für.jpeg", "._für.png", ".DS_Store", "Thumbs.db"):
            (folder / name).write_bytes(b"resource fork")
    (record,) = load(images, labels, role="test")
    assert record["file_name"] == str(images / normalize("NFD", "für.JPEG"))


def test_faults_of_folders_are_named(tmp_path: Path) -> None:
    images, labels = write_pairs(tmp_path, MAPS)
    with pytest.raises(ValueError, match=r"set dataset\.test\.label_root"):
        load_sem_seg_dataset("own", str(images), None, num_classes=3, role="test")
    with pytest.raises(ValueError, match=r"gone does not exist: set dataset\.train\.image_root"):
        load(images / "gone", labels)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no image in .*empty with a label map"):
        load(tmp_path / "empty", labels)
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    with pytest.raises(ValueError, match=r"names 2 classes .* set dataset\.num_classes=2"):
        load(images, labels, class_names=str(tmp_path / "classes.txt"))


def test_faults_of_files_are_named(tmp_path: Path) -> None:
    images, labels = write_pairs(tmp_path, MAPS)
    with pytest.raises(ValueError, match=r"labels must be 0 .. 1 .* got 2 in .*\.png"):
        load(images, labels, num_classes=2)
    write_labels(labels / "a.png", some_labels(size=(8, 8)))
    with pytest.raises(ValueError, match=r"a\.png must have .* \(24, 32\), got \(8, 8\)"):
        load(images, labels)
    (labels / "a.png").write_bytes(b"no png")
    with pytest.raises(ValueError, match=r"labels/a\.png cannot be read: it is not an image"):
        load(images, labels)
    write_labels(labels / "a.png", MAPS["a"])
    for path in images.rglob("*.jpg"):
        path.write_bytes(b"no jpg")
    with pytest.raises(ValueError, match=r"none of the 2 images of 'own' .*train\.image_root"):
        load(images, labels)


def write_known(root: Path, name: str) -> int:
    """Two images of a known data set below `root`; returns its number of classes."""
    layout = LAYOUTS[name]
    common = ["2008_1", "2008_2"]
    if "cityscapes" in name:
        common = [f"ulm/{stem}" for stem in common]
    for number, stem in enumerate(common):
        labels = some_labels(number, classes=2) + layout.reduce_zero_label
        labels[:3, :5] = 0 if layout.reduce_zero_label else 255
        image = root / layout.image_root / f"{stem}{layout.image_suffix}"
        write_labels(image, np.zeros_like(labels))
        write_labels(root / layout.label_root / f"{stem}{layout.label_suffix}", labels)
    if layout.split_file is not None:
        path = root / layout.split_file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{common[1]}\n")
    return len(layout.class_names)


@pytest.mark.parametrize("name", LAYOUTS)
def test_known_data_sets(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    shift = LAYOUTS[name].reduce_zero_label
    num_classes = write_known(tmp_path, name)
    options = {"num_classes": num_classes, "reduce_zero_label": shift}
    assert len(load_sem_seg_dataset(name, **options)) == (1 if LAYOUTS[name].split_file else 2)
    with pytest.raises(ValueError, match=r"class_names=mine\.txt is for a data set of your own"):
        load_sem_seg_dataset(name, **options, class_names="mine.txt")
    with pytest.raises(ValueError, match=f"set dataset.num_classes={num_classes}"):
        load_sem_seg_dataset(name, **{**options, "num_classes": num_classes + 1})
    with pytest.raises(ValueError, match=f"set dataset.reduce_zero_label={shift}"):
        load_sem_seg_dataset(name, **{**options, "reduce_zero_label": not shift})


def test_numbers_of_classes() -> None:
    """Of the paper and of the official release's configs."""
    expected = {
        "ade20k_150_val": 150,
        "coco_stuff_164k_val": 171,
        "coco_stuff_10k_test": 171,
        "pascal_context_59_val": 59,
        "cityscapes_19_val": 19,
        "mapillary_19_train": 19,
        "potsdam_6_val": 6,
        "chase_db1_val": 2,
    }
    for name, count in expected.items():
        classes = LAYOUTS[name].class_names
        assert len(set(classes)) == count, name
        assert all(name == name.strip() for name in classes)


def test_ade20k_names_are_the_published_ones(shared: Path) -> None:
    lines = (shared / "data/ade_mini/objectInfo150.txt").read_text().splitlines()[1:]
    first_names = [line.split("\t")[-1].split(",")[0].strip() for line in lines]
    ours = [name.split(",")[0] for name in LAYOUTS["ade20k_150_val"].class_names]
    assert len(first_names) == 150
    assert sum(a == b for a, b in zip(ours, first_names, strict=True)) >= 140


def test_real_data(shared: Path) -> None:
    camvid = shared / "data/camvid_mini"
    for split, count in (("train", 32), ("val", 12)):
        records = load_sem_seg_dataset(
            "camvid",
            str(camvid / "images" / split),
            str(camvid / "annotations" / split),
            num_classes=11,
            role="test",
        )
        assert len(records) == count
    ade = shared / "data/ade_mini"
    folders = str(ade / "images"), str(ade / "annotations")
    records = load_sem_seg_dataset("ade", *folders, num_classes=150, reduce_zero_label=True)
    assert len(records) == 6


@pytest.mark.parametrize("name", ["ade20k_150", "potsdam"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match=rf"dataset\.test\.name={name} is not a known data set"):
        load_sem_seg_dataset(name, num_classes=3, role="test")


def test_absent_known_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(ValueError, match=r"prepare_potsdam\.py.*DETECTRON2_DATASETS"):
        load_sem_seg_dataset("potsdam_6_val", num_classes=6, reduce_zero_label=True)


def test_metadata_needs_no_files(tmp_path: Path) -> None:
    assert sem_seg_metadata("chase_db1_val", None, 2).stuff_classes == ["background", "vessel"]
    assert sem_seg_metadata("own", None, 2).stuff_classes == ["0", "1"]
    assert sem_seg_metadata("own", str(tmp_path / "none.txt"), 2).stuff_classes == ["0", "1"]
    (tmp_path / "classes.txt").write_text("a\nb\n")
    own = str(tmp_path / "classes.txt")
    assert sem_seg_metadata("own", own, 2).stuff_classes == ["a", "b"]
    assert sem_seg_metadata("own", own, 3).stuff_classes == ["0", "1", "2"]
