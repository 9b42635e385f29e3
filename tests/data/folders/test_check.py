"""What a check counts, and what it refuses."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import folder_formats as formats
import numpy as np
import pytest
from folder_formats import Splits
from folder_samples import load, tiny_config
from PIL import Image

from vitadapter.data.folders import check, report
from vitadapter.data.folders.check import check_dataset
from vitadapter.data.folders.prepare import LabelSettings, prepare
from vitadapter.data.folders.report import CheckReport
from vitadapter.data.folders.splits import FolderSettings

Writer = Callable[[Path, Splits], None]


@pytest.fixture
def folder(root: Path, splits: Splits) -> Path:
    formats.write_roboflow_coco(root, splits)
    return root


def report_of(root: Path, limit: int | None = None) -> CheckReport:
    return check_dataset(prepare(str(root), "instances", FolderSettings()), LabelSettings(), limit)


def lines_of(root: Path, role: str = "train") -> dict[str, int | None]:
    return {line: by_role.get(role) for line, by_role in report_of(root).counts.items()}


def change(folder: Path, **changes: dict[str, object]) -> None:
    """Changes the first so many annotations of the training file."""
    path = folder / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    for annotation, change in zip(content["annotations"], changes.values(), strict=False):
        annotation.update(change)
    path.write_text(json.dumps(content))


def test_counts(folder: Path, splits: Splits) -> None:
    found = report_of(folder)
    content, _ = splits["train"]
    areas = [a["area"] for a in content["annotations"]]
    counts = {line: tuple(by_role.values()) for line, by_role in found.counts.items()}
    assert counts["images"] == counts["images read"] == (4, 2)
    small = sum(area < 32**2 for area in areas)
    assert (counts["small objects"][0], counts["medium objects"][0]) == (small, 8 - small)
    assert found.class_names == ["class0", "class1"]
    assert found.classes["train"] == found.class_images["train"] == {0: 4, 1: 4}
    assert (found.warnings, found.refusals) == ([], [])
    assert "| class1  |               4 |" in found.text()
    assert found.text().endswith(found.proposal)
    assert "dataset.resize.train_short" in found.proposal


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (formats.write_roboflow_coco, "COCO"),
        (partial(formats.write_yolo, polygons=True), "YOLO"),
        (formats.write_voc, "Pascal VOC"),
        (formats.write_labelme, "labelme"),
    ],
)
def test_the_format_is_named(write: Writer, name: str, root: Path, splits: Splits) -> None:
    write(root, splits)
    for found in (report_of(root), report_of(root)):  # made, and from the cache
        assert found.text().splitlines()[0] == f"format: {name}"


def test_boxes(folder: Path) -> None:
    change(
        folder,
        a={"bbox": [-5, 0, 10, 10]},
        b={"bbox": [100, 0, 10, 10]},
        c={"bbox": [0, 0, 0, 10]},
        d={"iscrowd": 1},
        e={"bbox": [-0.5, 0, 10, 10]},
    )
    counts = lines_of(folder)
    assert counts["boxes that reach out of the image"] == 1
    assert counts["boxes outside the image"] == 1
    assert counts["boxes without area"] == 1
    assert counts["crowds"] == 1
    change(folder, **{str(n): {"bbox": [0, 0, 0, 0]} for n in range(5)})
    with pytest.raises(ValueError, match=r"5 of 8 boxes of dataset\.train without area"):
        tiny_config(folder)


def test_kinds_of_images(folder: Path) -> None:
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    for name, image in {
        "000.tif": Image.fromarray(grey),
        "001.tif": Image.fromarray(grey.astype(np.float32) / 4096),
        "002.tif": Image.new("CMYK", (64, 64)),
    }.items():
        image.save(folder / "train" / name)
    turned = Image.new("RGB", (64, 64), "green")
    turned.getexif()[0x0112] = 6
    turned.save(folder / "train" / "003.jpg", exif=turned.getexif())
    path = folder / "train" / "_annotations.coco.json"
    text = path.read_text()
    for number in range(3):
        text = text.replace(f"00{number}.png", f"00{number}.tif")
    path.write_text(text.replace("003.png", "003.jpg"))
    counts = lines_of(folder)
    for line in ("images of 16 or 32 bits", "images of floats", "CMYK images"):
        assert counts[line] == 1
    assert counts["images rotated by EXIF data"] == 1
    assert counts["unreadable images"] == 0


def test_sizes_before_the_rotation(folder: Path) -> None:
    turned = Image.new("RGB", (64, 32), "green")
    turned.getexif()[0x0112] = 6
    turned.save(folder / "valid" / "004.png", format="JPEG", exif=turned.getexif())
    path = folder / "valid" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["images"][0].update(width=64, height=32)
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"1 image of another size than annotated in dataset\.test"
    ):
        tiny_config(folder)
    content["images"][0].update(width=32, height=64)
    path.write_text(json.dumps(content))
    tiny_config(folder)


@pytest.mark.parametrize("image", ["train/000.png", "valid/004.png"])
def test_unreadable_images(folder: Path, image: str) -> None:
    """In each split alike."""
    (folder / image).write_bytes(b"GIF")
    role = "train" if image.startswith("train") else "test"
    with pytest.raises(
        ValueError, match=rf"1 unreadable image in dataset\.{role} \(.*{image} .* not an image"
    ):
        tiny_config(folder)
    # The user may know better.
    assert len(load(tiny_config(folder, "dataset.check=False"))[1]) == 2


def _with_arrays(folder: Path, *arrays: np.ndarray) -> None:
    """With arrays in place of the first training images."""
    path = folder / "train" / "_annotations.coco.json"
    text = path.read_text()
    for number, array in enumerate(arrays):
        np.save(folder / "train" / f"00{number}.npy", array)
        (folder / "train" / f"00{number}.png").unlink()
        text = text.replace(f"00{number}.png", f"00{number}.npy")
    path.write_text(text)


def test_channels(folder: Path) -> None:
    arrays = np.random.default_rng(0).normal(5, 2, (4, 64, 64, 5))
    arrays[..., 4] = 7
    _with_arrays(folder, *arrays)
    found = report_of(folder)
    assert found.counts["images of 5 channels that are no colours"]["train"] == 4
    (line,) = [line for line in found.text().splitlines() if line.startswith("channels:")]
    mean, deviation = (json.loads(text) for text in re.findall(r"\[.*?\]", line))
    np.testing.assert_allclose(mean, arrays.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(deviation, [*arrays.std((0, 1, 2))[:4], 1], rtol=1e-4)
    np.save(folder / "train" / "000.npy", arrays[0, ..., :4])
    assert "differ in their channels: 1 image of 4, 3 images of 5" in report_of(folder).refusals[0]


def test_arrays_that_cannot_be_read(folder: Path) -> None:
    _with_arrays(folder, np.zeros((4, 64, 64)), np.full((64, 64), 1e300), np.full((64, 64), "a"))
    (refusal,) = report_of(folder).refusals
    for reason in ("(C, H, W): save array.transpose(1, 2, 0)", "within ±3.40282e+38", "type <U1"):
        assert reason in refusal


def test_copies(folder: Path) -> None:
    (folder / "train" / "000.png").write_bytes((folder / "train" / "001.png").read_bytes())
    assert report_of(folder).warnings == ["dataset.train repeats 1 image"]
    (folder / "train" / "000.png").write_bytes((folder / "valid" / "004.png").read_bytes())
    with pytest.raises(ValueError, match=r"dataset\.train has 1 image of dataset\.test"):
        tiny_config(folder)


def test_balance(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(folder, **{str(n): {"category_id": 1} for n in range(7)})
    monkeypatch.setattr(report, "_BALANCED", 6)
    assert report_of(folder).warnings == [
        "the most frequent class has 7 objects in training, the rarest 1 (class1)"
    ]
    change(folder, **{str(n): {"category_id": 1} for n in range(8)})
    assert report_of(folder).warnings == ["training lacks 1 of 2 classes (class1)"]


def test_runs_once_for_each_state(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int | None] = []

    def counted(*arguments: object) -> CheckReport:
        calls.append(1)
        return check_dataset(*arguments)

    monkeypatch.setattr(check, "check_dataset", counted)
    tiny_config(folder)
    tiny_config(folder)
    assert len(calls) == 1
    (passed,) = cache.glob("*/check.md")
    assert passed.read_text() == report_of(folder).text()
    Image.new("RGB", (64, 64), "red").save(folder / "train" / "000.png")
    tiny_config(folder)
    assert len(calls) == 2


def test_reads_a_part_of_many_images(folder: Path) -> None:
    (folder / "train" / "001.png").write_bytes(b"")
    found = report_of(folder, limit=2)
    assert found.counts["images read"] == {"train": 2, "test": 2}
    assert found.counts["images"] == {"train": 4, "test": 2}
    assert found.warnings == []


def test_images_without_a_label_file(root: Path, splits: Splits) -> None:
    formats.write_yolo(root, splits, polygons=True)
    (root / "valid" / "labels" / "004.txt").unlink()
    lines = lines_of(root, "test")
    assert lines["images without a label file"] == lines["images without objects"] == 1
    assert lines_of(root)["images without a label file"] == 0
