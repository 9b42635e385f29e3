"""Which images are trained on and which evaluated: as the folder says, or made."""

import csv
from multiprocessing import get_context
from pathlib import Path

import folder_formats as formats
import pytest
from folder_formats import Splits
from folder_samples import load, tiny_config

from vitadapter.data.folders.found import FoundImage
from vitadapter.data.folders.listing import image_key, split_of
from vitadapter.data.folders.prepare import prepare
from vitadapter.data.folders.splits import FolderSettings, assign_splits

FILES = [f"{scene}/{frame:03d}.jpg" for scene in "abcde" for frame in range(20)]


def images(*splits: str | None, files: list[str] = FILES) -> list[FoundImage]:
    """Images, the first so many of each of the splits."""
    chosen = splits or (None,)
    return [FoundImage(file, chosen[n % len(chosen)]) for n, file in enumerate(files)]


def test_held_out(splits: Splits) -> None:
    found = assign_splits(images("train", "val", "test"), FolderSettings())
    assert {image.split for image in found["test"]} == {"val"}
    found = assign_splits(images("train", "test"), FolderSettings())
    assert {image.split for image in found["test"]} == {"test"}
    with pytest.raises(ValueError, match="no images for training, only the splits test, val"):
        assign_splits(images("val", "test"), FolderSettings())


def test_images_of_no_split(caplog: pytest.LogCaptureFixture) -> None:
    found = assign_splits(images("train", "val", None), FolderSettings())
    assert sum(map(len, found.values())) == 67
    assert "33 images of dataset.root in no split, left out" in caplog.text


def test_made_split() -> None:
    def files(**settings: object) -> tuple[list[str], list[str]]:
        found = assign_splits(images(), FolderSettings(**settings))
        return [i.file for i in found["train"]], [i.file for i in found["test"]]

    train, test = files()
    assert (len(train), len(test)) == (80, 20)
    assert sorted(train + test) == FILES
    assert files() == (train, test)
    assert files(seed=1)[1] != test
    assert len(files(fraction=0.5)[1]) == 50
    # A smaller part is within a larger one.
    assert set(files(fraction=0.1)[1]) < set(test)
    _, grouped = files(group=r"^(\w)/")
    assert len(grouped) == 20
    assert len({file[0] for file in grouped}) == 1


def test_order_and_other_images_do_not_matter() -> None:
    found = assign_splits(images(files=FILES[::-1]), FolderSettings())
    expected = assign_splits(images(), FolderSettings())
    assert {i.file for i in found["test"]} == {i.file for i in expected["test"]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0}, "fraction must be between 0 and 1, got 0"),
        ({"fraction": "half"}, "fraction must be between 0 and 1, got 'half'"),
        ({"seed": 0.5}, "seed must be an integer, got 0.5"),
        ({"group": "("}, "must be a regular expression"),
        ({"exclude": (1,)}, "exclude must be a list of texts"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FolderSettings(**settings)


def test_what_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match=r"fits no file, such as a/000\.jpg"):
        assign_splits(images(), FolderSettings(group="scene"))
    with pytest.raises(ValueError, match=r"what stays together .* cannot be divided"):
        assign_splits(images(files=FILES[:1]), FolderSettings())


def test_written_down_and_the_same_at_every_start(
    splits: Splits, root: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    formats.write_yolo(root, {"train": splits["train"]}, polygons=True)
    before = sorted(root.rglob("*"))
    override = "dataset.split.fraction=0.5"
    cfg = tiny_config(root, override)
    assert "2 of 4 images are held out (dataset.split.fraction=0.5" in caplog.text
    train, test = load(cfg)
    (written,) = cache.glob("*/splits.csv")
    with written.open() as file:
        rows = {row["image"]: row["role"] for row in csv.DictReader(file)}
    for role, records in (("train", train), ("test", test)):
        names = {Path(r["file_name"]).relative_to(root.resolve()).as_posix() for r in records}
        assert names == {name for name, found in rows.items() if found == role}
    assert load(tiny_config(root, override)) == (train, test)
    assert sorted(root.rglob("*")) == before  # the user's folder


def _prepare(root: str) -> str:
    return str(prepare(root, "instances", FolderSettings()).folder)


def test_processes_agree(splits: Splits, root: Path, cache: Path) -> None:
    formats.write_yolo(root, {"train": splits["train"]}, polygons=True)
    with get_context("fork").Pool(4) as pool:
        folders = set(pool.map(_prepare, [str(root)] * 8))
    assert len(folders) == 1
    made = [path for path in cache.iterdir() if not path.name.endswith(".lock")]
    assert [str(path) for path in made] == list(folders)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train/images/1.jpg", "train"),
        ("images/val2017/1.jpg", "val"),
        ("Valid/1.jpg", "val"),
        ("testing/1.jpg", "test"),
        ("train_labels/1.png", "train"),
        ("images_test/1.png", "test"),
        ("trains/1.jpg", None),
        ("images/train.jpg", None),
        ("contest/1.jpg", None),
    ],
)
def test_split_of(path: str, split: str | None) -> None:
    assert split_of(path) == split


def test_split_of_a_name() -> None:
    assert split_of("annotations/instances_train2017.json", by_name=True) == "train"
    assert split_of("valid/_annotations.coco.json", by_name=True) == "val"
    assert split_of("annotations/contest.json", by_name=True) is None


def test_image_key() -> None:
    key = ("train", "a", "1")
    for path in ("images/train/a/1.jpg", "train/labels/a/1.txt", "train_masks/a/1.png"):
        assert image_key(path) == key
    assert image_key("train/a/1_Mask.png", ("_mask",)) == key
