"""What a check counts, and what it refuses."""

import json
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
    with pytest.raises(ValueError, match=r"5 of the 8 boxes of dataset\.train have no area"):
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
    with pytest.raises(ValueError, match=r"1 images of dataset\.test have another size"):
        tiny_config(folder)
    content["images"][0].update(width=32, height=64)
    path.write_text(json.dumps(content))
    tiny_config(folder)


def test_unreadable_images(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "train" / "000.png").write_bytes(b"GIF")
    tiny_config(folder)
    assert "1 images of dataset.train cannot be read" in caplog.text
    (folder / "valid" / "004.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 images of dataset\.test cannot be read"):
        tiny_config(folder)
    # The user may know better.
    assert len(load(tiny_config(folder, "dataset.check=False"))[1]) == 2


def test_copies(folder: Path) -> None:
    (folder / "train" / "000.png").write_bytes((folder / "train" / "001.png").read_bytes())
    assert report_of(folder).warnings == ["1 images of dataset.train are copies of others"]
    (folder / "train" / "000.png").write_bytes((folder / "valid" / "004.png").read_bytes())
    with pytest.raises(ValueError, match=r"1 images of dataset\.test are in dataset\.train too"):
        tiny_config(folder)


def test_balance(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(folder, **{str(n): {"category_id": 1} for n in range(7)})
    monkeypatch.setattr(report, "_BALANCED", 6)
    assert report_of(folder).warnings == [
        "the most frequent class has 7 objects in training, the rarest 1 (class1)"
    ]
    change(folder, **{str(n): {"category_id": 1} for n in range(8)})
    assert report_of(folder).warnings == ["1 of 2 classes do not occur in training (class1)"]


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
