import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image
from sem_seg_samples import some_labels, write_labels, write_pairs

from vitadapter.data.sem_seg import SemSegDatasetMapper, load_sem_seg_dataset
from vitadapter.data.sem_seg.labels import LabelReader, read_class_names
from vitadapter.data.transforms import PadToSize, RandomResize, ResizeToFit

VALUES = np.array([[0, 1, 2], [3, 2, 255]])


def save(path: Path, values: np.ndarray, mode: str) -> str:
    if mode == "P":
        image = Image.fromarray(values.astype(np.uint8), "L")
        image.putpalette([7 * i % 256 for i in range(768)])
    elif mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16))
    else:
        image = Image.fromarray(values.astype(np.int32 if mode == "I" else np.uint8))
    image.save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    return str(path)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("P", "png"), ("I;16", "png"), ("I", "tif")]
)
def test_labels_are_the_numbers_in_the_file(tmp_path: Path, mode: str, suffix: str) -> None:
    """Of a palette image the indices, of 16 bits all of them."""
    file_name = save(tmp_path / f"labels.{suffix}", VALUES, mode)
    labels = LabelReader(4)(file_name)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, VALUES)


def test_more_classes_than_8_bits(tmp_path: Path) -> None:
    values = np.array([[0, 846, 255, 65535]])
    file_name = save(tmp_path / "labels.png", values, "I;16")
    np.testing.assert_array_equal(LabelReader(847, ignore_label=65535)(file_name), values)
    with pytest.raises(ValueError, match=r"labels must be 0 .. 845 or 65535 .* got 846 in "):
        LabelReader(846, ignore_label=65535)(file_name)


def test_one_bit(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "labels.png")
    assert LabelReader(2)(str(tmp_path / "labels.png"), np.int32).tolist() == [[1, 0]]


def test_label_shift(tmp_path: Path) -> None:
    """As the official code bases shift: 0 and 255 are ignored."""
    file_name = save(tmp_path / "labels.png", VALUES, "L")
    labels = LabelReader(3, reduce_zero_label=True)(file_name)
    np.testing.assert_array_equal(labels, [[255, 0, 1], [2, 1, 255]])


@pytest.mark.parametrize(("shift", "allowed"), [(False, "0 .. 1"), (True, "1 .. 2")])
def test_labels_outside_the_classes_are_named(tmp_path: Path, shift: bool, allowed: str) -> None:
    file_name = save(tmp_path / "odd.png", np.array([[1, 7, 9, 255]]), "L")
    with pytest.raises(ValueError, match=rf"labels must be {allowed} .* got 7, 9 in .*odd\.png"):
        LabelReader(2, reduce_zero_label=shift)(file_name)


def test_a_class_may_be_the_ignored_one(tmp_path: Path) -> None:
    file_name = save(tmp_path / "labels.png", np.array([[0, 1, 2]]), "L")
    assert LabelReader(3, ignore_label=0)(file_name).tolist() == [[0, 1, 2]]


def test_colours_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "colours.png")
    with pytest.raises(
        ValueError, match=r"colours\.png must have one whole number per pixel .*\(2, 2, 3\)"
    ):
        LabelReader(2)(str(tmp_path / "colours.png"))


@pytest.mark.parametrize("ignored", [0, 3])
def test_contradictions(ignored: int) -> None:
    with pytest.raises(ValueError, match=f"ignore_label must not be one of .* got {ignored}"):
        LabelReader(3, ignore_label=ignored, reduce_zero_label=True)
    with pytest.raises(ValueError, match=r"num_classes must be positive, got 0"):
        LabelReader(0)


def test_class_names(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("sky\n traffic light \n\n")
    assert read_class_names(str(path)) == ["sky", "traffic light"]
    path.write_text("sky\r\nroad\r\n", encoding="utf-8-sig")  # as Windows' editor writes it
    assert read_class_names(str(path)) == ["sky", "road"]
    for text, fault in (("a\n\nb", "an empty line"), ("a\nb\na", "'a' more than once")):
        path.write_text(text)
        with pytest.raises(ValueError, match=fault):
            read_class_names(str(path))
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="must be a text file"):
        read_class_names(str(path))
    with pytest.raises(ValueError, match=r"does not exist: set dataset\.class_names="):
        read_class_names(str(tmp_path / "none.txt"))


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
