from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitadapter.data.sem_seg.labels import LabelReader, read_class_names

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
