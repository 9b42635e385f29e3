"""Folders of images and label maps load as those of `image_root` and `label_root` do."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from sem_seg_samples import some_labels, write_labels

from vitadapter.data.folders import resolve_root
from vitadapter.data.sem_seg import LabelReader
from vitadapter.engine.overrides import apply_overrides
from vitadapter.model_zoo import get_config

COLOURS = np.array([[128, 64, 128], [0, 0, 192], [64, 0, 64]], np.uint8)
VOID = (0, 0, 0)
NAMES = ("road", "traffic light", "sky")
SPLITS = {"train": (0, 1, 2), "val": (3, 4)}


def config(root: Path, *overrides: str) -> DictConfig:
    cfg = OmegaConf.create({}, flags={"allow_objects": True})
    base = get_config("common/data/sem_seg.py")
    cfg.dataset, cfg.dataloader = base.dataset, base.dataloader
    cfg.train = {"output_dir": "output"}
    overrides = (f"dataset.root={root}", *overrides)
    return resolve_root(apply_overrides(cfg, overrides), overrides)


def loaded(cfg: DictConfig) -> dict[str, dict[str, np.ndarray]]:
    """Label maps (H, W) by the name of the image, of each role."""
    reader = LabelReader(
        cfg.dataset.num_classes, cfg.dataset.ignore_label, cfg.dataset.reduce_zero_label
    )
    found = {}
    for role in ("train", "test"):
        records = instantiate(cfg.dataloader[role].dataset)
        found[role] = {
            Path(r["file_name"]).stem: reader.of_record(
                r, np.asarray(Image.open(r["file_name"]))[..., None]
            )
            for r in records
        }
    return found


def coloured(labels: np.ndarray) -> np.ndarray:
    return np.where((labels == 255)[..., None], np.uint8(VOID), COLOURS[labels % 3])


def write(root: Path, image: str, label: str, *, in_colours: bool = False) -> None:
    """Both splits; `image` and `label` are patterns of paths with {split} and {name}."""
    for split, numbers in SPLITS.items():
        for number in numbers:
            labels = some_labels(number)
            place = {"split": split, "name": f"{number}"}
            write_labels(root / image.format(**place), np.full((24, 32, 3), number, np.uint8))
            write_labels(root / label.format(**place), coloured(labels) if in_colours else labels)


def assert_loaded(cfg: DictConfig) -> None:
    for (_, numbers), (_, maps) in zip(SPLITS.items(), loaded(cfg).items(), strict=True):
        assert sorted(maps) == [str(number) for number in numbers]
        for name, labels in maps.items():
            np.testing.assert_array_equal(labels, some_labels(int(name)))


LAYOUTS: Mapping[str, tuple[str, str]] = {
    "ADE20K": ("images/{split}/{name}.jpg", "annotations/{split}/{name}.png"),
    "mmseg": ("img_dir/{split}/{name}.png", "ann_dir/{split}/{name}.png"),
    "by split": ("{split}/images/{name}.png", "{split}/masks/{name}.png"),
    "Kaggle CamVid": ("{split}/{name}.png", "{split}_labels/{name}_L.png"),
    "SegNet": ("{split}/{name}.png", "{split}annot/{name}.png"),
    "Roboflow": ("{split}/{name}.jpg", "{split}/{name}_mask.png"),
    "sample": ("{split}/{name}.jpg", "sem_seg/{split}/{name}.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, root: Path) -> None:
    write(root, *LAYOUTS[layout])
    cfg = config(root)
    assert cfg.dataset.num_classes == 3
    assert cfg.dataset.reduce_zero_label is False
    assert_loaded(cfg)


def test_label_maps_stay_where_they_are(root: Path) -> None:
    write(root, *LAYOUTS["mmseg"])
    (record, *_) = instantiate(config(root).dataloader.train.dataset)
    assert Path(record["file_name"]).resolve() == root / "img_dir/train/0.png"
    assert Path(record["sem_seg_file_name"]).resolve() == root / "ann_dir/train/0.png"


TABLES = {
    "class_dict.csv": "name,r,g,b\nroad,128,64,128\ntraffic light,0,0,192\nsky,64,0,64\nVoid,0,0,0",
    "labelmap.txt": (
        "# label:color_rgb:parts:actions\nroad:128,64,128::\ntraffic light:0,0,192::\n"
        "sky:64,0,64::\nunlabeled:0,0,0::\n"
    ),
    "label_colors.txt": "128 64 128\troad\n0 0 192\ttraffic light\n64 0 64\tsky\n0 0 0\tVoid\n",
}


@pytest.mark.parametrize("table", TABLES)
def test_coloured(table: str, root: Path) -> None:
    write(root, *LAYOUTS["mmseg"], in_colours=True)
    (root / table).write_text(TABLES[table])
    cfg = config(root)
    assert Path(cfg.dataset.class_names).read_text().splitlines() == list(NAMES)
    assert_loaded(cfg)


def test_colours_of_a_palette(root: Path) -> None:
    write(root, *LAYOUTS["mmseg"], in_colours=True)
    for path in root.glob("ann_dir/*/*.png"):
        Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=8).save(path)
    (root / "class_dict.csv").write_text(TABLES["class_dict.csv"])
    assert_loaded(config(root))


def test_colours_that_no_table_has(root: Path) -> None:
    write(root, *LAYOUTS["mmseg"], in_colours=True)
    with pytest.raises(ValueError, match=r"has colours, but .* add class_dict\.csv"):
        config(root)
    (root / "class_dict.csv").write_text("road,128,64,128\nsky,64,0,64\nvoid,0,0,0\n")
    with pytest.raises(ValueError, match=r"5 faults .*1 colour that the table .*\(0, 0, 192\)"):
        config(root)


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ("classes.txt", "road\ntraffic light\nsky\n"),
        ("_classes.csv", "Pixel Value, Class\n0, road\n1, traffic light\n2, sky\n255, ignore\n"),
    ],
)
def test_names(table: str, names: str, root: Path) -> None:
    write(root, *LAYOUTS["Roboflow"])
    for split in SPLITS if table.startswith("_") else ("",):
        (root / split / table).write_text(names)
    cfg = config(root)
    assert Path(cfg.dataset.class_names).read_text().splitlines() == list(NAMES)
    assert_loaded(cfg)
    (root / "classes.csv").write_text("other\nnames\n")
    with pytest.raises(ValueError, match="tell of different classes"):
        config(root)


def test_numbers_that_are_not_the_classes(root: Path) -> None:
    for name in range(4):
        labels = np.where(some_labels(name, classes=2) == 1, np.uint8(255), np.uint8(0))
        write_labels(root / "images" / f"{name}.jpg", np.full((24, 32, 3), 9 * name, np.uint8))
        # Grey in three channels is no colour.
        write_labels(root / "masks" / f"{name}.png", np.repeat(labels[..., None], 3, 2))
    with pytest.raises(ValueError, match=r"0 and 255 alone, .*255,NAME"):
        config(root)
    (root / "classes.csv").write_text("0,background\n255,cell\n")
    cfg = config(root)
    assert cfg.dataset.num_classes == 2
    found = loaded(cfg)
    assert (len(found["train"]), len(found["test"])) == (3, 1)
    for name, labels in (found["train"] | found["test"]).items():
        np.testing.assert_array_equal(labels, some_labels(int(name), classes=2) == 1)


def test_another_number_is_ignored(root: Path) -> None:
    write(root, *LAYOUTS["mmseg"])
    (root / "classes.csv").write_text("0,road\n1,void\n2,sky\n")
    cfg = config(root)
    assert cfg.dataset.num_classes == 2
    for maps in loaded(cfg).values():
        for name, labels in maps.items():
            np.testing.assert_array_equal(
                labels,
                np.array([0, 255, 1], np.uint8)[np.minimum(some_labels(int(name)), 2)]
                | (some_labels(int(name)) == 255) * np.uint8(255),
            )
    with pytest.raises(ValueError, match=r"set dataset\.reduce_zero_label=False"):
        config(root, "dataset.reduce_zero_label=True")


def test_zero_that_is_no_class(root: Path) -> None:
    write(root, *LAYOUTS["mmseg"])
    cfg = config(root, "dataset.reduce_zero_label=True")
    assert (cfg.dataset.num_classes, cfg.dataset.reduce_zero_label) == (2, True)


def test_images_and_label_maps_alone(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(root, *LAYOUTS["mmseg"])
    (root / "img_dir/val/3.png").unlink()
    (root / "ann_dir/train/0.png").unlink()
    found = loaded(config(root))
    assert (sorted(found["train"]), sorted(found["test"])) == (["1", "2"], ["4"])
    assert "1 of 4 label maps without an image (ann_dir/val/3.png)" in caplog.text
    assert "1 of 4 images without a label map, left out (img_dir/train/0.png)" in caplog.text


def test_two_label_maps_of_an_image(root: Path) -> None:
    write(root, *LAYOUTS["sample"])
    write(root, LAYOUTS["sample"][0], "foreground/{split}/{name}.png")
    with pytest.raises(ValueError, match=r"both label files of train/0\.jpg.*dataset\.exclude"):
        config(root)
    assert_loaded(config(root, "dataset.exclude=foreground"))


def test_values_outside_the_classes(root: Path) -> None:
    write(root, *LAYOUTS["mmseg"])
    (root / "classes.txt").write_text("road\nsky\n")
    with pytest.raises(ValueError, match=r"3 of 3 label maps of dataset\.train cannot be used"):
        config(root)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("img_dir/val/3.png", r"^((?!cache).)*1 unreadable image in .*img_dir/val/3\.png .*empty"),
        ("ann_dir/val/3.png", r": ann_dir/val/3\.png cannot be read: it is empty"),
        ("classes.txt", r"classes\.txt lists no class"),
    ],
)
def test_empty_files(root: Path, file: str, message: str) -> None:
    """They are named as the user knows them, and once."""
    write(root, *LAYOUTS["mmseg"])
    (root / "classes.txt").write_text("road\ntraffic light\nsky\n")
    (root / file).write_bytes(b"")
    with pytest.raises(ValueError, match=message) as raised:
        config(root)
    assert str(raised.value).count(file) == 1


def test_no_label_maps(root: Path) -> None:
    write_labels(root / "images" / "1.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match="1 image, but no annotations in the format of label"):
        config(root)


def test_camvid(shared: Path) -> None:
    folder = shared / "data" / "camvid_mini"
    cfg = config(folder)
    assert cfg.dataset.num_classes == 11
    found = instantiate(cfg.dataloader.test.dataset)
    expected = sorted((folder / "images" / "val").iterdir())
    assert [Path(r["file_name"]).resolve() for r in found] == [p.resolve() for p in expected]
    labels = [folder / "annotations" / "val" / f"{path.stem}.png" for path in expected]
    assert [Path(r["sem_seg_file_name"]).resolve() for r in found] == [p.resolve() for p in labels]
