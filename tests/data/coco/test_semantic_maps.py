from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import torch
from coco_samples import make_content, write_coco
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from vitadapter.data.coco import add_semantic_maps, load_coco_dataset
from vitadapter.data.dataset_mapper import DatasetMapper, read_semantic_map

SIZE = 64
LABELS = np.add.outer(np.arange(SIZE), np.arange(SIZE)).astype(np.uint8)  # row + column


def _record(folder: Path, labels: np.ndarray = LABELS, mode: str = "L") -> dict[str, object]:
    """An image whose grey is its label."""
    image = np.repeat(LABELS[:, :, None], 3, axis=2)
    Image.fromarray(image).save(folder / "image.png")
    stored = Image.fromarray(labels)
    if mode == "P":
        stored.putpalette([channel for i in range(256) for channel in (255 - i, 0, 7)])
        assert stored.mode == "P"
    stored.convert(mode).save(folder / "map.png")
    annotation = {
        "bbox": [8, 8, 40, 30],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": [[8, 8, 48, 8, 48, 38, 8, 38]],
    }
    return {
        "file_name": str(folder / "image.png"),
        "sem_seg_file_name": str(folder / "map.png"),
        "height": SIZE,
        "width": SIZE,
        "annotations": [annotation],
    }


def _mapper(*augmentations: T.Augmentation, is_train: bool = True) -> DatasetMapper:
    return DatasetMapper(
        is_train, augmentations=augmentations, image_format="RGB", use_instance_mask=True
    )


@pytest.mark.parametrize("mode", ["L", "P"])
def test_labels_are_the_stored_numbers(tmp_path: Path, mode: str) -> None:
    labels = LABELS.copy()
    labels[0] = 255
    record = _record(tmp_path, labels, mode)
    np.testing.assert_array_equal(read_semantic_map(record, LABELS), labels)
    del record["sem_seg_file_name"]
    assert read_semantic_map(record, LABELS) is None


@pytest.mark.parametrize(
    "augmentations",
    [
        (),
        (T.RandomFlip(prob=1.0, horizontal=True),),
        (T.RandomCrop("absolute", (40, 24)),),
        (T.RandomFlip(prob=1.0, horizontal=True), T.RandomCrop("absolute", (24, 40))),
    ],
    ids=["none", "flip", "crop", "flip and crop"],
)
def test_moves_with_the_image(tmp_path: Path, augmentations: tuple[T.Augmentation, ...]) -> None:
    mapped = _mapper(*augmentations)(_record(tmp_path))
    assert mapped["sem_seg"].dtype == torch.int64
    assert torch.equal(mapped["sem_seg"], mapped["image"][0].long())


def test_is_resized_without_new_labels(tmp_path: Path) -> None:
    labels = np.where(LABELS > SIZE, 200, 3).astype(np.uint8)
    mapped = _mapper(T.ResizeShortestEdge(100, 200))(_record(tmp_path, labels))
    assert mapped["sem_seg"].shape == mapped["image"].shape[1:] == (100, 100)
    assert mapped["sem_seg"].unique().tolist() == [3, 200]


def test_is_not_read_in_inference(tmp_path: Path) -> None:
    record = _record(tmp_path)
    Path(record["sem_seg_file_name"]).unlink()
    assert "sem_seg" not in _mapper(is_train=False)(record)


@pytest.mark.parametrize("kind", ["absent", "broken", "smaller", "colours"])
def test_an_image_with_an_unusable_map_is_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    record = _record(tmp_path)
    path = Path(record["sem_seg_file_name"])
    if kind == "absent":
        path.unlink()
    elif kind == "broken":
        path.write_bytes(path.read_bytes()[:60])
    elif kind == "smaller":
        Image.fromarray(LABELS[:32]).save(path)
    else:
        Image.new("RGB", (SIZE, SIZE)).save(path)
    assert _mapper()(record) is None
    (warning,) = caplog.messages
    assert str(record["file_name"]) in warning
    if kind in ("smaller", "colours"):
        assert str(path) in warning


def _coco(folder: Path) -> dict[str, object]:
    json_file, image_root = write_coco(folder, make_content(images=3))
    maps = folder / "maps"
    maps.mkdir()
    for i in range(3):
        Image.fromarray(LABELS).save(maps / f"{i:03d}.png")
    return {
        "name": "unused",
        "json_file": json_file,
        "image_root": image_root,
        "num_classes": 2,
        "sem_seg_root": str(maps),
    }


def test_the_data_set_finds_the_maps(tmp_path: Path) -> None:
    options = _coco(tmp_path)
    records = load_coco_dataset(**options)
    files = [Path(record["sem_seg_file_name"]) for record in records]
    assert [path.name for path in files] == ["000.png", "001.png", "002.png"]
    assert all(path.parent == tmp_path / "maps" for path in files)
    options["sem_seg_root"] = None
    # The catalog's own dicts are left as they were.
    assert not any("sem_seg_file_name" in record for record in load_coco_dataset(**options))


def test_missing_maps_are_counted_and_name_the_override(tmp_path: Path) -> None:
    options = _coco(tmp_path)
    (tmp_path / "maps" / "001.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 .*\(001\.png\): set dataset\.train\.sem_seg_ro"):
        load_coco_dataset(**options)
    with pytest.raises(ValueError, match=r"nowhere does not exist: set dataset\.test\.sem_seg_ro"):
        add_semantic_maps([], str(tmp_path / "nowhere"), role="test")


def test_maps_of_a_mac(tmp_path: Path) -> None:
    """Names in Unicode's other form, endings in capitals, and files that are no maps."""
    for name in (normalize("NFD", "für.PNG"), "._für.png", ".DS_Store"):
        (tmp_path / name).touch()
    record = {"file_name": normalize("NFC", "images/für.jpg")}
    (found,) = add_semantic_maps([record], str(tmp_path))
    assert found["sem_seg_file_name"] == str(tmp_path / normalize("NFD", "für.PNG"))
