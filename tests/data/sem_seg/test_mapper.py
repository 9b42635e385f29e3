import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from sem_seg_samples import some_labels, write_labels, write_pairs

from vitadapter.data.sem_seg import LabelReader, SemSegDatasetMapper, load_sem_seg_dataset
from vitadapter.data.transforms import PadToSize, RandomResize, ResizeToFit

CLASSES = 3


def recipe(crop: int) -> list[T.Augmentation | T.Transform]:
    """The augmentations of the official recipes, for a crop of this side."""
    return [
        RandomResize(crop, 4 * crop),
        T.RandomCrop_CategoryAreaConstraint("absolute", (crop, crop), 0.75, 255),
        T.RandomFlip(),
        ColorAugSSDTransform("RGB"),
        PadToSize((crop, crop), (123.675, 116.28, 103.53), 255),
    ]


def make_mapper(is_train: bool, augmentations: list, **options: object) -> SemSegDatasetMapper:
    return SemSegDatasetMapper(
        is_train,
        augmentations=augmentations,
        image_format="RGB",
        read_label=LabelReader(CLASSES),
        **options,
    )


@pytest.fixture
def record(tmp_path: Path) -> dict[str, object]:
    """An image whose grey values are 20 times its labels."""
    images, labels = write_pairs(tmp_path, {"a": some_labels()}, image_suffix=".png")
    return {"file_name": str(images / "a.png"), "sem_seg_file_name": str(labels / "a.png")}


def test_labels_stay_on_their_pixels(record: dict[str, object]) -> None:
    augmentations = [ResizeToFit(48), T.RandomFlip(prob=1.0), T.RandomCrop("absolute", (40, 40))]
    mapped = make_mapper(True, augmentations)(record)
    assert mapped["image"].shape == (3, 40, 40)
    assert mapped["sem_seg"].dtype == torch.int64
    # Away from the borders of the blocks, which bilinear and nearest resizing treat differently.
    grey = (mapped["sem_seg"] * 20 % 256).byte()
    assert (mapped["image"][0] == grey).float().mean() > 0.7


@pytest.mark.parametrize("crop", [16, 40])
def test_recipe(record: dict[str, object], crop: int) -> None:
    """Also where an image is smaller than the crop: the padding has the ignored label."""
    mapper = make_mapper(True, recipe(crop))
    np.random.seed(0)  # noqa: NPY002
    for _ in range(10):
        mapped = mapper(record)
        assert mapped["image"].shape == (3, crop, crop)
        assert mapped["image"].dtype == torch.uint8
        assert mapped["sem_seg"].shape == (crop, crop)
        assert set(mapped["sem_seg"].unique().tolist()) <= {0, 1, 2, 255}
    assert (mapped["height"], mapped["width"]) == (24, 32)


def test_padding_is_ignored(record: dict[str, object]) -> None:
    mapped = make_mapper(True, [PadToSize((32, 40), (1, 2, 3), 255)])(record)
    assert mapped["sem_seg"].shape == (32, 40)
    assert (mapped["sem_seg"][24:] == 255).all()
    assert (mapped["sem_seg"][:, 32:] == 255).all()
    assert mapped["image"][:, 31, 39].tolist() == [1, 2, 3]


def test_test_images_have_no_labels(record: dict[str, object]) -> None:
    """Their label maps are read by the evaluator, in their own size."""
    del record["sem_seg_file_name"]
    mapped = make_mapper(False, [ResizeToFit(48)])(record)
    assert mapped["image"].shape == (3, 48, 64)
    assert (mapped["height"], mapped["width"]) == (24, 32)
    assert "sem_seg" not in mapped


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (np.full((24, 32), 7, np.uint8), r"got 7 in .*a\.png"),
        (some_labels(size=(24, 31)), r"label map .*a\.png must have .* \(24, 32\), got \(24, 31\)"),
    ],
    ids=["class", "size"],
)
def test_unusable_label_maps_are_skipped_and_named(
    record: dict[str, object], labels: np.ndarray, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_labels(Path(str(record["sem_seg_file_name"])), labels)
    mapper = make_mapper(True, [])
    assert mapper(record) is None
    assert mapper(record) is None
    (warning,) = caplog.records
    assert re.search(fault, warning.getMessage())
    with pytest.raises(ValueError, match=r"1 training images cannot be used .*a\.png"):
        make_mapper(True, [], max_skipped=1)(record)


@pytest.mark.parametrize("key", ["file_name", "sem_seg_file_name"])
@pytest.mark.parametrize("value", [None, 3, "none.png", [], "/"])
def test_broken_records_are_named(record: dict[str, object], key: str, value: object) -> None:
    record[key] = value
    with pytest.raises(
        ValueError, match=r"1 training images .*including " + re.escape(str(record["file_name"]))
    ):
        make_mapper(True, [], max_skipped=1)(record)


@pytest.mark.parametrize("size", [(1, 600), (600, 1)])
def test_thin_images(record: dict[str, object], size: tuple[int, int]) -> None:
    path = Path(str(record["file_name"]))
    write_pairs(path.parents[1], {path.stem: some_labels(size=size)}, ".png")
    for is_train, augmentations in ((True, recipe(16)), (False, [ResizeToFit(48, 200)])):
        mapped = make_mapper(is_train, augmentations)(record)
        assert min(mapped["image"].shape[1:]) >= 1


def test_unreadable_test_image(record: dict[str, object]) -> None:
    Path(str(record["file_name"])).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot use the test image .*a\.png"):
        make_mapper(False, [])(record)


def test_training_loader(tmp_path: Path) -> None:
    """Detectron2's loader draws another image for one that is skipped."""
    images, labels = write_pairs(tmp_path, {name: some_labels(i) for i, name in enumerate("abc")})
    records = load_sem_seg_dataset("own", str(images), str(labels), num_classes=CLASSES)
    write_labels(labels / "a.png", np.full((24, 32), 9, np.uint8))
    loader = build_detection_train_loader(
        dataset=records,
        mapper=make_mapper(True, recipe(16)),
        total_batch_size=4,
        aspect_ratio_grouping=False,
    )
    batch = next(iter(loader))
    assert len(batch) == 4
    assert not [x for x in batch if str(x["file_name"]).endswith("a.jpg")]
