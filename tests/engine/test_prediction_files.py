import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from coco_samples import make_content, write_coco
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.cocoeval import COCOeval

from vitadapter.data.coco.results import load_results
from vitadapter.data.panoptic.maps import read_panoptic_png, rgb_to_id
from vitadapter.data.sem_seg import LabelReader
from vitadapter.engine.prediction_files import (
    CROPS,
    JSON,
    MAPS,
    FoundWriter,
    InputFiles,
    UnsupportedFilesError,
    dataset_ids,
    merge_json,
    started,
)
from vitadapter.visualization.overlays import Palette
from vitadapter.visualization.predictions import Found

PALETTE = Palette(["class0", "class1"])
IDS = {0: 1, 1: 2}
IMAGE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def instances_of(boxes: list[list[float]], classes: list[int], masks: bool = True) -> Found:
    """Exact predictions of boxes (x, y, w, h) in an image of 64 x 64 pixels."""
    found = Instances((64, 64))
    corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes]).float().reshape(-1, 4)
    found.pred_boxes = Boxes(corners)
    found.scores = torch.linspace(0.9, 0.5, len(boxes))
    found.pred_classes = torch.tensor(classes)
    if masks:
        found.pred_masks = torch.zeros(len(boxes), 64, 64, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(found.pred_masks, corners.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
    return Found(found)


def files_of(root: Path, name: str = "a.png", **only: bool) -> InputFiles:
    paths = {
        "picture": root / name,
        "json": root / JSON / f"{name}.json",
        "crops": root / CROPS / name,
        "maps": root / MAPS / name,
    }
    return InputFiles(**{kind: paths[kind] for kind, wanted in only.items() if wanted})


def write(root: Path, files: InputFiles, *found: Found, name: str = "a.png", fps=None) -> None:
    with FoundWriter.open(files, root, Path(name), PALETTE, IDS, fps) as writer:
        for each in found:
            writer.add(IMAGE, each)


def test_results_are_what_pycocotools_evaluates(tmp_path: Path) -> None:
    """Files named by their ids, as COCO's are, need no other table."""
    content = make_content(images=3)
    for image in content["images"]:
        image["file_name"] = f"{image['id']:012d}.png"
    json_file, _ = write_coco(tmp_path / "data", content)
    written = []
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        found = instances_of([a["bbox"] for a in own], [a["category_id"] - 1 for a in own])
        written.append(files_of(tmp_path, image["file_name"], json=True))
        write(tmp_path, written[-1], found, name=image["file_name"])
    target = tmp_path / "predictions.json"
    merge_json([file.json for file in written], tmp_path)
    data = load_results(json_file, target)
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(data.api, data.api.loadRes(str(target)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1)
    entry = json.loads(target.read_text())[0]
    assert entry["file_name"] == "000000000001.png"
    assert entry["category_name"] == "class0"


def test_names_stand_for_ids_of_other_images(tmp_path: Path) -> None:
    files = files_of(tmp_path, "below/é 1.png", json=True)
    write(tmp_path, files, instances_of([[1, 2, 3, 4]], [1], masks=False), name="below/é 1.png")
    [entry] = json.loads(files.json.read_text())
    assert entry["image_id"] == entry["file_name"] == "below/é 1.png"
    assert entry["bbox"] == [1, 2, 3, 4]
    assert "segmentation" not in entry


def test_nothing_found_is_an_empty_list(tmp_path: Path) -> None:
    files = files_of(tmp_path, picture=True, json=True, crops=True)
    write(tmp_path, files, instances_of([], []))
    assert json.loads(files.json.read_text()) == []
    assert list(files.crops.iterdir()) == []
    merge_json([files.json], tmp_path)
    assert json.loads((tmp_path / "predictions.json").read_text()) == []


def test_crops_are_the_pixels_of_the_objects(tmp_path: Path) -> None:
    files = files_of(tmp_path, crops=True)
    write(
        tmp_path, files, instances_of([[5, 6, 20, 10], [-5, 50, 20, 30], [70, 0, 5, 5]], [0, 1, 0])
    )
    names = sorted(path.name for path in files.crops.iterdir())
    assert names == ["001_class0_0.90.png", "002_class1_0.70.png"]
    np.testing.assert_array_equal(cv2.imread(str(files.crops / names[0])), IMAGE[6:16, 5:25])
    np.testing.assert_array_equal(cv2.imread(str(files.crops / names[1])), IMAGE[50:, :15])


def test_label_maps_are_read_as_numbers_and_shown_in_colours(tmp_path: Path) -> None:
    labels = np.where(np.arange(64) < 30, 0, 1) * np.ones((64, 1), dtype=int)
    labels[:5] = -1
    files = files_of(tmp_path, maps=True, json=True)
    write(tmp_path, files, Found(labels=labels))
    read = LabelReader(num_classes=2)(str(files.maps))
    np.testing.assert_array_equal(read, np.where(labels < 0, 255, labels))
    with Image.open(files.maps) as shown:
        assert shown.convert("RGB").getpixel((60, 20)) == PALETTE.color(1)
    entries = json.loads(files.json.read_text())
    assert [entry["category_id"] for entry in entries] == [1, 2]


def test_many_classes_need_16_bits(tmp_path: Path) -> None:
    palette = Palette([str(number) for number in range(300)])
    labels = np.full((8, 8), 299)
    labels[0] = -1
    files = files_of(tmp_path, maps=True)
    with FoundWriter.open(files, tmp_path, Path("a.png"), palette, {}) as writer:
        writer.add(IMAGE[:8, :8], Found(labels=labels))
    read = LabelReader(num_classes=300, ignore_label=65535)(str(files.maps))
    np.testing.assert_array_equal(read[:, 0], [65535] + 7 * [299])


def test_panoptic_maps_and_their_segments(tmp_path: Path) -> None:
    ids = np.zeros((64, 64), dtype=np.int32)
    ids[:20], ids[20:50, 10:30] = 1, 300
    segments = [
        {"id": 1, "category_id": 1, "isthing": False},
        {"id": 300, "category_id": 0, "isthing": True},
    ]
    files = files_of(tmp_path, "below/a.png", maps=True, json=True, crops=True)
    write(tmp_path, files, Found(segments=(ids, segments)), name="below/a.jpg")
    np.testing.assert_array_equal(rgb_to_id(read_panoptic_png(str(files.maps))), ids)
    [entry] = json.loads(files.json.read_text())
    assert entry["file_name"] == "below/a.png"
    assert entry["image_file_name"] == "below/a.jpg"
    assert [s["category_id"] for s in entry["segments_info"]] == [2, 1]
    [crop] = files.crops.iterdir()
    assert cv2.imread(str(crop)).shape == (30, 20, 3)


@pytest.mark.parametrize(
    ("kind", "found"),
    [("maps", instances_of([], [])), ("crops", Found(labels=np.zeros((64, 64), dtype=int)))],
)
def test_what_a_model_has_not_is_refused(tmp_path: Path, kind: str, found: Found) -> None:
    with pytest.raises(UnsupportedFilesError, match=f"--{kind} needs a"):
        write(tmp_path, files_of(tmp_path, **{kind: True}), found)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_files_that_were_there(tmp_path: Path) -> None:
    files = files_of(tmp_path, picture=True, json=True, crops=True)
    write(tmp_path, files, instances_of([[5, 6, 20, 10]], [0]))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(before) == 3

    def fail() -> None:
        with FoundWriter.open(files, tmp_path, Path("a.png"), PALETTE, IDS) as writer:
            writer.add(IMAGE, instances_of([], []))
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fail()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    write(tmp_path, files, instances_of([], []))
    assert list(files.crops.iterdir()) == []  # replaced, not added to


def test_videos_have_files_of_all_frames(tmp_path: Path) -> None:
    files = InputFiles(
        tmp_path / "a.mp4", tmp_path / JSON / "a.json", tmp_path / CROPS / "a.mp4", None
    )
    found = [
        instances_of([[5, 6, 20, 10]], [0]),
        instances_of([], []),
        instances_of([[0, 0, 9, 9]], [1]),
    ]
    write(tmp_path, files, *found, name="a.mp4", fps=5.0)
    assert [entry["frame"] for entry in json.loads(files.json.read_text())] == [0, 2]
    assert sorted(path.name for path in files.crops.iterdir()) == [
        "000000_001_class0_0.90.png",
        "000002_001_class1_0.90.png",
    ]
    capture = cv2.VideoCapture(str(files.picture))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    maps = InputFiles(maps=tmp_path / MAPS / "b")
    labels = [Found(labels=np.full((64, 64), number)) for number in (0, 1)]
    write(tmp_path, maps, *labels, name="b.mp4", fps=5.0)
    read = [LabelReader(2)(str(tmp_path / MAPS / "b" / f"00000{n}.png")).max() for n in (0, 1)]
    assert read == [0, 1]


def test_files_of_other_settings_are_not_gone_on_with(tmp_path: Path) -> None:
    files = files_of(tmp_path, picture=True)
    first = started(tmp_path, {"score_threshold": 0.5}, go_on=False)
    write(tmp_path, files, instances_of([], []))
    assert files.are_newer(first)
    assert started(tmp_path, {"score_threshold": 0.5}, go_on=True) == first
    with pytest.raises(ValueError, match=r"score_threshold was 0\.5 and is 0\.3"):
        started(tmp_path, {"score_threshold": 0.3}, go_on=True)
    os.utime(files.picture, (first - 1, first - 1))
    assert not files.are_newer(first)
    assert not files_of(tmp_path, picture=True, json=True).are_newer(0)


def test_ids_of_the_data_set() -> None:
    both = Metadata(
        thing_dataset_id_to_contiguous_id={7: 0}, stuff_dataset_id_to_contiguous_id={90: 1}
    )
    assert dataset_ids(both) == {0: 7, 1: 90}
    assert dataset_ids(Metadata()) == {}
