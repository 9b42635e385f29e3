"""Files of any number of channels."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from vitadapter.data.channel_files import read_array
from vitadapter.data.image_files import channels_size, is_image_name, read_image, read_stored

TYPES = [np.uint8, np.uint16, np.int32, np.float32, np.float64]


def some_pixels(channels: int, dtype: type) -> np.ndarray:
    return (np.random.default_rng(0).random((6, 4, channels)) * 200).astype(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 16])
def test_numbers_stay_as_they_are(tmp_path: Path, channels: int, dtype: type) -> None:
    pixels = some_pixels(channels, dtype)
    np.save(tmp_path / "a.npy", pixels)
    order = None if channels == 1 else "contig"
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig=order)
    for name in ("a.npy", "a.tif"):
        read = read_image(str(tmp_path / name), channels)
        assert read.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
        np.testing.assert_array_equal(read, pixels.astype(np.float32))


@pytest.mark.parametrize("planar", [None, "separate"])
def test_a_channel_a_page(tmp_path: Path, planar: str | None) -> None:
    pixels = some_pixels(5, np.uint16)
    pages = pixels.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack", planarconfig=planar)
    np.testing.assert_array_equal(read_array(tmp_path / "a.tif", 5), pixels)


@pytest.mark.parametrize("photometric", ["rgb", "minisblack", "miniswhite"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_numbers_that_pillow_would_change(tmp_path: Path, photometric: str, dtype: type) -> None:
    ends = np.iinfo(dtype)
    shape = (6, 4) if photometric == "miniswhite" else (6, 4, 3)
    pixels = np.random.default_rng(0).integers(ends.min, ends.max, shape, dtype, endpoint=True)
    order = "contig" if len(shape) == 3 else None
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, planarconfig=order)
    read = read_array(tmp_path / "a.tif", None)
    np.testing.assert_array_equal(read, pixels.reshape(6, 4, -1).astype(np.float32))


def test_16_bit_colours_that_pillow_would_cut(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), some_pixels(3, np.uint16) * 300)
    with pytest.raises(ValueError, match=r"16 bits, of which 8 would be lost: save it as \.tif"):
        read_array(tmp_path / "a.png", 3)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_images_of_other_programs(tmp_path: Path, mode: str, channels: int) -> None:
    pixels = some_pixels(channels, np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.png"), channels), pixels)
    assert channels_size(tmp_path / "a.png") is None


def test_16_bit_grey_is_not_scaled(tmp_path: Path) -> None:
    pixels = some_pixels(1, np.uint16) * 300
    Image.fromarray(pixels[..., 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.png"), 1), pixels)


def test_colours_in_an_array(tmp_path: Path) -> None:
    pixels = some_pixels(3, np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.npy"), "RGB"), pixels)
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.npy"), "BGR"), pixels[..., ::-1])
    assert is_image_name("a.npy")


def test_checks_read_what_is_stored(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", some_pixels(5, np.float32))
    Image.fromarray(some_pixels(3, np.uint8)).save(tmp_path / "a.png")
    assert read_stored(str(tmp_path / "a.npy")).shape == (6, 4, 5)
    assert read_stored(str(tmp_path / "a.png")).shape == (6, 4, 3)
    assert channels_size(tmp_path / "a.npy") == (6, 4)


@pytest.mark.parametrize(
    ("pixels", "image_format", "message"),
    [
        (some_pixels(4, np.uint8), 5, r"has 4 channels, but model\.pixel_mean has 5 values"),
        (some_pixels(5, np.uint8), "RGB", r"5 channels of uint8, which are no 8-bit colours"),
        (some_pixels(3, np.float32), "RGB", r"image_format of the mappers to 3"),
        (np.full((4, 4, 5), np.nan), 5, r"NaN or infinite"),
        (np.zeros((4, 4, 17)), 17, r"1 to 16 channels"),
        (np.zeros((0, 4, 5)), 5, r"must have pixels"),
        (np.zeros((4, 4, 5), complex), 5, r"plain numbers, got the type complex"),
        (np.zeros(4), 5, r"must be \(H, W\) or \(H, W, C\), got \(4,\)"),
        (np.array([{}]), 5, r"Python objects"),
    ],
)
def test_unusable_arrays(
    tmp_path: Path, pixels: np.ndarray, image_format: str | int, message: str
) -> None:
    np.save(tmp_path / "a.npy", pixels)
    with pytest.raises(ValueError, match=rf"a\.npy cannot be read: .*{message}"):
        read_image(str(tmp_path / "a.npy"), image_format)


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"")
    (tmp_path / "a.tif").write_bytes(b"II*\0 broken")
    for name in ("a.npy", "a.tif", "none.npy"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read"):
            read_image(str(tmp_path / name), 5)
