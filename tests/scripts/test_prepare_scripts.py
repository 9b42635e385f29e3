"""Each preparation script on a few files as they are downloaded; then the data set loads."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from vitadapter.data.sem_seg import LabelReader, load_sem_seg_dataset
from vitadapter.data.sem_seg.layouts import COCO_STUFF, LAYOUTS, PASCAL_CONTEXT_59

SHAPE = (4, 6)


@pytest.fixture
def run(repository: Path) -> Callable[..., None]:
    """Runs scripts/NAME.py with arguments."""

    def call(name: str, *arguments: object) -> None:
        path = repository / "scripts" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main([str(argument) for argument in arguments])

    return call


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of data sets."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def row(*values: int) -> np.ndarray:
    """Labels (4, 6) uint8 of which each row is these values."""
    return np.repeat(np.array([values], dtype=np.uint8), SHAPE[0], axis=0)


def loaded(name: str) -> list[list[int]]:
    """First row of each label map of a known data set, as it is trained on."""
    layout = LAYOUTS[name]
    classes, shift = len(layout.class_names), layout.reduce_zero_label
    records = load_sem_seg_dataset(name, num_classes=classes, reduce_zero_label=shift, role="test")
    reader = LabelReader(classes, reduce_zero_label=shift)
    return [reader(str(record["sem_seg_file_name"]))[0].tolist() for record in records]


def test_cityscapes(run: Callable[..., None], root: Path) -> None:
    folder = root / "cityscapes"
    for split in ("train", "val"):
        save(folder / f"leftImg8bit/{split}/ulm/ulm_1_leftImg8bit.png", row(*range(6)))
        label_ids = row(7, 8, 33, 0, 26, 29)  # road, sidewalk, bicycle, none, car, caravan
        save(folder / f"gtFine/{split}/ulm/ulm_1_gtFine_labelIds.png", label_ids)
    run("prepare_cityscapes", folder)
    assert loaded("cityscapes_19_val") == [[0, 1, 18, 255, 13, 255]]


def test_mapillary(run: Callable[..., None], root: Path) -> None:
    for split in ("training", "validation"):
        save(root / f"Mapillary/{split}/images/a.jpg", row(*range(6)))
        image = Image.fromarray(row(13, 41, 27, 55, 65, 19), "L")  # road twice, sky, car, -, person
        image.putpalette([5 * i % 256 for i in range(768)])
        path = root / f"Mapillary/{split}/labels/a.png"
        path.parent.mkdir(parents=True)
        image.save(path)
    for _ in range(2):  # may be run again
        run("prepare_mapillary", root / "Mapillary")
    assert loaded("mapillary_19_train") == [[0, 0, 10, 13, 255, 11]]
    assert loaded("mapillary_19_trainval") == 2 * loaded("mapillary_19_train")


def test_coco_stuff_164k(run: Callable[..., None], root: Path) -> None:
    folder = root / "coco_stuff164k"
    for split in ("train2017", "val2017"):
        save(folder / f"images/{split}/1.jpg", row(*range(6)))
        # person, toothbrush, banner, wood, street sign (which no annotation uses), none
        save(folder / f"annotations/{split}/1.png", row(0, 89, 91, 181, 11, 255))
    run("prepare_coco_stuff", folder)
    assert loaded("coco_stuff_164k_val") == [[0, 79, 80, 170, 255, 255]]
    assert [COCO_STUFF[i] for i in (0, 79, 80, 170)] == ["person", "toothbrush", "banner", "wood"]


def test_coco_stuff_10k(run: Callable[..., None], root: Path) -> None:
    folder = root / "coco_stuff10k"
    for name, split in (("COCO_1", "train"), ("COCO_2", "test")):
        save(folder / f"images/{name}.jpg", row(*range(6)))
        (folder / "annotations").mkdir(exist_ok=True)
        savemat(folder / f"annotations/{name}.mat", {"S": row(1, 90, 92, 182, 0, 13)})
        (folder / "imageLists").mkdir(exist_ok=True)
        (folder / f"imageLists/{split}.txt").write_text(f"{name}\n")
    run("prepare_coco_stuff", folder, "--version", "10k")
    assert loaded("coco_stuff_10k_test") == [[0, 79, 80, 170, 255, 11]]


def test_pascal_context(run: Callable[..., None], root: Path) -> None:
    folder = root / "VOCdevkit/VOC2010"
    (folder / "ImageSets/Main").mkdir(parents=True)
    (root / "mat").mkdir()
    for name, split in (("2008_1", "train"), ("2008_2", "val")):
        save(folder / f"JPEGImages/{name}.jpg", row(*range(6)))
        (folder / f"ImageSets/Main/{split}.txt").write_text(f"{name}\n2009_9\n")
        labels = np.repeat([np.array([2, 458, 1, 440, 284, 0], np.uint16)], 4, axis=0)
        savemat(root / f"mat/{name}.mat", {"LabelMap": labels})
    run("prepare_pascal_context", folder, root / "mat")
    assert loaded("pascal_context_59_val") == [[0, 58, 255, 55, 36, 255]]
    names = [PASCAL_CONTEXT_59[i] for i in (0, 58, 55)]
    assert names == ["aeroplane", "wood", "wall"]


def test_potsdam(run: Callable[..., None], root: Path) -> None:
    colors = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)]
    labels = np.zeros((520, 600, 3), np.uint8)
    for i, color in enumerate(colors):
        labels[:, 10 * i : 10 * i + 10] = color
    for tile in ("2_10", "5_15"):
        save(root / f"rgb/top_potsdam_{tile}_RGB.tif", labels)
        save(root / f"labels/top_potsdam_{tile}_label.tif", labels)
    run("prepare_potsdam", root / "rgb", root / "labels", root / "potsdam")
    maps = loaded("potsdam_6_val")
    assert len(maps) == 4  # windows of 512 over 520 x 600
    assert maps[0][:70:10] == [0, 1, 2, 3, 4, 5, 255]
    assert sorted(p.name for p in (root / "potsdam/img_dir/train").iterdir()) == [
        "2_10_0_0.png",
        "2_10_0_8.png",
        "2_10_88_0.png",
        "2_10_88_8.png",
    ]
    # Of tile 6_7's cars, and of tile 4_12's low vegetation and impervious surface.
    labels[0, 0], labels[1, 1], labels[2, 2] = (252, 255, 0), (9, 222, 221), (225, 227, 227)
    save(root / "labels/top_potsdam_5_15_label.tif", labels)
    run("prepare_potsdam", root / "rgb", root / "labels", root / "potsdam")
    with Image.open(root / "potsdam/ann_dir/val/5_15_0_0.png") as written:
        assert [written.getpixel((i, i)) for i in range(3)] == [5, 3, 1]
    labels[3, 4] = (250, 2, 255)
    save(root / "labels/top_potsdam_5_15_label.tif", labels)
    message = r"top_potsdam_5_15_label.*got \(250, 2, 255\) \(1 pixels\)"
    with pytest.raises(SystemExit, match=message):
        run("prepare_potsdam", root / "rgb", root / "labels", root / "again")


def test_chase_db1(run: Callable[..., None], root: Path) -> None:
    for number in range(1, 15):
        for side in "LR":
            name = f"Image_{number:02}{side}"
            save(root / f"source/{name}.jpg", row(*range(6)))
            save(root / f"source/{name}_1stHO.png", row(0, 255, 0, 255, 255, 0) > 0)
            save(root / f"source/{name}_2ndHO.png", row(0, 0, 0, 0, 0, 0))
    run("prepare_chase_db1", root / "source", root / "CHASE_DB1")
    assert loaded("chase_db1_val") == [[0, 1, 0, 1, 1, 0]] * 8
    assert len(loaded("chase_db1_train")) == 20
    (root / "source/Image_03L.jpg").unlink()
    with pytest.raises(SystemExit, match="must hold CHASE-DB1's 28 images, got 27"):
        run("prepare_chase_db1", root / "source", root / "again")


def test_faults_are_named(run: Callable[..., None], root: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: the folder .*gtFine does not exist"):
        run("prepare_cityscapes", root)
    (root / "gtFine").mkdir()
    with pytest.raises(SystemExit, match="has no file"):
        run("prepare_cityscapes", root)
    path = root / "gtFine/val/ulm/ulm_gtFine_labelIds.png"
    save(path, np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(SystemExit, match=r"labelIds\.png cannot be converted: label ids must be"):
        run("prepare_cityscapes", root)
