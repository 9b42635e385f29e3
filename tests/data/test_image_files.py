import logging
import os
import struct
import zlib
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import torch
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import Tensor, nn

from vitadapter.data import image_files
from vitadapter.data.dataset_mapper import DatasetMapper
from vitadapter.data.image_files import (
    files_by_name,
    missing_files,
    open_image,
    read_image,
    read_numbers,
)
from vitadapter.data.panoptic import PanopticDatasetMapper
from vitadapter.data.sem_seg import LabelReader, SemSegDatasetMapper
from vitadapter.modeling.inference import SemanticSegmentorWithTTA

RAMP = np.tile(np.linspace(0, 1, 64), (48, 1))


@pytest.fixture(autouse=True)
def new_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been told yet."""
    monkeypatch.setattr(image_files, "_warned", set())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_every_colour_mode(tmp_path: Path, mode: str, image_format: str) -> None:
    colour = (255, 255, 255) if mode == "1" else (200, 100, 50)
    if mode in ("L", "LA", "I;16"):
        colour = (200, 200, 200)
    rgb = Image.new("RGB", (6, 4), colour)
    path = tmp_path / ("image.tif" if mode in ("CMYK", "I;16") else "image.png")
    if mode == "I;16":
        Image.fromarray(np.full((4, 6), 200 * 257, dtype=np.uint16)).save(path)
    elif mode == "LA":
        rgb.convert("L").convert("LA").save(path)
    elif mode == "P":
        rgb.quantize().save(path)
    else:
        rgb.convert(mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    expected = np.array(colour if image_format == "RGB" else colour[::-1])
    image = read_image(str(path), image_format)
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image, np.broadcast_to(expected, (4, 6, 3)), atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    pixels = np.arange(6 * 4, dtype=np.uint8).reshape(4, 6)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[274] = orientation
    path = str(tmp_path / "turned.png")
    image.save(path, exif=exif)
    turned = read_image(path, "RGB")
    np.testing.assert_array_equal(turned, detection_utils.read_image(path, "RGB"))
    assert turned.shape == ((4, 6, 3) if orientation < 5 else (6, 4, 3))


@pytest.mark.parametrize("exif", [b"Exif\0\0broken", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12"])
def test_broken_exif_data_is_ignored(tmp_path: Path, exif: bytes) -> None:
    path = str(tmp_path / "broken.jpg")
    Image.new("RGB", (6, 4), (200, 100, 50)).save(path, exif=exif)
    assert read_image(path, "RGB").shape == (4, 6, 3)


def white_of(values: np.ndarray) -> float:
    """The number that becomes 255, as the documentation says it."""
    brightest = values.max()
    if values.dtype == np.float32 and brightest <= 1:
        return 1
    if brightest <= 255:
        return 255
    if brightest <= 4095:
        return 4095
    return 65535 if brightest <= 65535 else 2147483647


dtypes = st.sampled_from([("png", np.uint16), ("tif", np.uint16), ("tif", np.int32)])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=dtypes, bits=st.integers(0, 31))
def test_integers_of_any_range(folder: Path, data: st.DataObject, kind: tuple, bits: int) -> None:
    suffix, dtype = kind
    end = min(2**bits, np.iinfo(dtype).max)
    values = data.draw(arrays.arrays(dtype, (3, 4), elements=st.integers(0, end)))
    Image.fromarray(values).save(folder / f"integers.{suffix}")
    image = read_image(str(folder / f"integers.{suffix}"), "BGR")
    assert image.dtype == np.uint8
    expected = values.astype(np.float64) * 255 / white_of(values)
    np.testing.assert_allclose(image, np.repeat(expected[..., None], 3, 2), atol=0.51)


@pytest.mark.parametrize(("brightest", "white"), [(4095, 4095), (4096, 65535), (256, 4095)])
def test_a_range_ends_at_its_last_number(folder: Path, brightest: int, white: int) -> None:
    values = np.full((3, 4), brightest, np.uint16)
    Image.fromarray(values).save(folder / "end.png")
    image = read_image(str(folder / "end.png"), "BGR")
    assert set(image.ravel().tolist()) == {round(brightest * 255 / white)}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), end=st.sampled_from([1, 255, 4095, 65535]))
def test_floats_of_any_range(folder: Path, data: st.DataObject, end: int) -> None:
    elements = st.floats(0, end, width=32)
    values = data.draw(arrays.arrays(np.float32, (3, 4), elements=elements))
    Image.fromarray(values).save(folder / "floats.tif")
    image = read_image(str(folder / "floats.tif"), "RGB")
    white = white_of(values)
    if 1 < values.max() <= 1 + 1 / 510:  # rounding of 1
        white = 1
    expected = np.clip(values * (255 / white), 0, 255)[..., None]
    np.testing.assert_allclose(image, np.repeat(expected, 3, 2), atol=0.51 + 1.5 * (white > 255))


@pytest.mark.parametrize(
    ("values", "guess"),
    [
        (RAMP.astype(np.float32), None),
        ((RAMP * 255).astype(np.float32), "0..255"),
        ((RAMP * 255).astype(np.int32), "0..255"),
        ((RAMP * 255).astype(np.uint16), "0..255"),
        ((RAMP * 4095).astype(np.uint16), "0..4095"),
        ((RAMP * 65535).astype(np.uint16), None),
        ((RAMP * 65535).astype(np.int32), "0..65535"),
        ((RAMP * (2**31 - 1)).astype(np.int32), "0..2147483647"),
    ],
)
def test_a_guess_is_told_once(
    tmp_path: Path, values: np.ndarray, guess: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ramp.tif"
    Image.fromarray(values).save(path)
    for _ in range(2):
        image = read_image(str(path), "RGB")
        assert (image.min(), image.max()) == (0, 255)
    if guess is None:
        assert caplog.text == ""
    else:
        (warning,) = caplog.records
        assert (
            f"{path} has numbers with more than 8 bits, of which {guess} become"
            in warning.getMessage()
        )


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3), np.uint8),
        np.eye(4, dtype=np.uint8),
        np.full((4, 4), 3, np.uint16),
        (RAMP * 1e6).astype(np.int32),
        np.add.outer(np.arange(4), np.full(4, 90)).astype(np.uint8),
    ],
    ids=["black", "mask", "dark 16 bit", "32 bit", "grey"],
)
def test_images_without_contrast_are_told_once(
    tmp_path: Path, pixels: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(pixels).save(tmp_path / "dark.tif")
    Image.fromarray(pixels).save(tmp_path / "other.tif")
    for name in ("dark.tif", "other.tif", "dark.tif"):
        read_image(str(tmp_path / name), "RGB")
    (warning,) = caplog.records
    assert "dark.tif has hardly any contrast" in warning.getMessage()


def png(bits: int, colour_type: int, rows: bytes, width: int, height: int) -> bytes:
    """A PNG of a bit depth that Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("end", [65535, 4095])
def test_colours_of_16_bits(tmp_path: Path, end: int, caplog: pytest.LogCaptureFixture) -> None:
    """Scaled from 0..65535, which leaves little of 12 bits."""
    row = np.repeat(np.linspace(0, end, 64).astype(">u2")[:, None], 3, 1)
    path = tmp_path / "colours.png"
    path.write_bytes(png(16, 2, b"\0" + row.tobytes(), 64, 1))
    image = read_image(str(path), "RGB")
    np.testing.assert_allclose(image[0], row / 257, atol=1)
    assert ("hardly any contrast" in caplog.text) == (end == 4095)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_numbers_of_few_bits_are_not_stretched(tmp_path: Path, bits: int) -> None:
    numbers = np.arange(8) % 2**bits
    packed = np.packbits(((numbers[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8))
    path = tmp_path / "labels.png"
    path.write_bytes(png(bits, 0, b"\0" + packed.tobytes(), 8, 1))
    np.testing.assert_array_equal(read_numbers(path)[0], numbers)
    np.testing.assert_array_equal(LabelReader(16)(str(path))[0], numbers)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.5, -3.0, 1e12])
def test_floats_that_are_no_image(tmp_path: Path, value: float) -> None:
    values = RAMP.astype(np.float32)
    values[3, 5] = value
    Image.fromarray(values).save(tmp_path / "odd.tif")
    with pytest.raises(ValueError, match=r"odd\.tif cannot be read: its? .*pixels"):
        read_image(str(tmp_path / "odd.tif"), "RGB")


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_negative_integers(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.linspace(-9, 100, 48, dtype=dtype).reshape(6, 8)).save(tmp_path / "odd.tif")
    with pytest.raises(ValueError, match=r"odd\.tif .*must lie in 0\.\.2147483647, got -9 to 100"):
        read_image(str(tmp_path / "odd.tif"), "RGB")


def test_rounding_beyond_a_range(tmp_path: Path) -> None:
    values = RAMP.astype(np.float32) * 1.001 - 0.0005
    Image.fromarray(values).save(tmp_path / "resampled.tif")
    image = read_image(str(tmp_path / "resampled.tif"), "RGB")
    np.testing.assert_allclose(image[..., 0], values.clip(0, 1) * 255, atol=0.51)


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp"])
def test_of_several_pages_the_first_is_read(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    pages = [Image.fromarray((RAMP * end).astype(np.uint8)) for end in (200, 100)]
    path = tmp_path / f"pages.{suffix}"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    for _ in range(2):
        np.testing.assert_allclose(read_image(str(path), "RGB")[..., 0], RAMP * 200, atol=4)
    (warning,) = caplog.records
    assert f"{path} holds several images" in warning.getMessage()


def test_an_ordinary_image_is_not_talked_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray((RAMP * 200).astype(np.uint8)).save(tmp_path / "image.jpg")
    with caplog.at_level(logging.DEBUG):
        read_image(str(tmp_path / "image.jpg"), "RGB")
    assert caplog.text == ""


class Sees(nn.Module):
    """A segmenter that keeps its input."""

    def forward(self, inputs: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        self.image = inputs[0]["image"]
        return [{"sem_seg": torch.zeros(2, *self.image.shape[1:])}]


def test_every_path_reads_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray((RAMP * 4095).astype(np.uint16)).save(path)
    expected = read_image(str(path), "RGB").transpose(2, 0, 1)
    record = {"file_name": str(path)}
    options = dict(augmentations=[], image_format="RGB")
    mappers = [
        DatasetMapper(True, **options),
        DatasetMapper(False, **options),
        PanopticDatasetMapper(False, **options),
        SemSegDatasetMapper(False, read_label=LabelReader(2), **options),
    ]
    for mapper in mappers:
        np.testing.assert_array_equal(mapper(record)["image"], expected)
    segmenter = SemanticSegmentorWithTTA(Sees(), resizes=[T.NoOpTransform()], flip=False)
    segmenter([mappers[-1](record)])
    np.testing.assert_array_equal(segmenter.model.image, expected)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "loop", "text"])
def test_what_is_no_image_is_refused(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "image.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "text":
        path.write_text("hello")
    for read in (lambda name: read_image(name, "RGB"), read_numbers, LabelReader(2)):
        with pytest.raises(ValueError, match=f"{path} cannot be read: "):
            read(str(path))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_named(folder: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(["png", "jpg", "tif", "gif", "bmp", "webp"]))
    path = folder / f"damaged.{suffix}"
    Image.fromarray((RAMP * 200).astype(np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        image = read_image(str(path), "RGB")
    except ValueError as error:
        named = str(error)
    else:
        assert image.dtype == np.uint8
        return
    assert str(path) in named


def test_errors_of_the_body_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("L", (2, 2)).save(path)
    with pytest.raises(ValueError, match=f"{path} cannot be read: KeyError"), open_image(path):
        raise KeyError("any")


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_both_forms_of_unicode(tmp_path: Path, stored: str, asked: str) -> None:
    """As macOS zips a folder, and others read it."""
    for name in ("über.png", "straße/für.png"):
        path = tmp_path / normalize(stored, name)
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((RAMP * 200).astype(np.uint8)).save(path)
        named = str(tmp_path / normalize(asked, name))
        assert missing_files([named]) == []
        assert read_image(named, "RGB").shape == (48, 64, 3)
    assert sorted(files_by_name(tmp_path, None)) == sorted(
        normalize("NFC", name) for name in ("über", "straße/für")
    )


def test_files_that_are_none_of_the_data_set(tmp_path: Path) -> None:
    names = ["a.PNG", "sub/b.png", "._a.png", "sub/._b.png", ".DS_Store", "Thumbs.db", "c.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = {"a": str(tmp_path / "a.PNG"), "sub/b": str(tmp_path / "sub/b.png")}
    assert files_by_name(tmp_path, None) == expected
    assert files_by_name(tmp_path, ".png") == expected
    assert files_by_name(tmp_path, "b.png") == {"sub/": str(tmp_path / "sub/b.png")}


def test_links_that_lead_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Found once; a link to a folder elsewhere is followed."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root / "a", elsewhere):
        folder.mkdir(parents=True)
        (folder / "image.png").touch()
    (root / "b").symlink_to(elsewhere)
    (root / "a" / "up").symlink_to(root)
    (elsewhere / "back").symlink_to(root / "a")
    found = files_by_name(root, None)
    assert sorted(found) == ["a/image", "b/back/image", "b/image"]
    assert sorted(r.getMessage().split(" is left out")[0] for r in caplog.records) == [
        str(root / "a" / "up"),
        str(root / "b" / "back" / "up"),
    ]


def test_folders_that_link_to_each_other_are_read_once(tmp_path: Path) -> None:
    """There are 20! ways through them."""
    folders = [tmp_path / f"f{i}" for i in range(20)]
    for folder in folders:
        folder.mkdir()
        (folder / "image.png").touch()
    for folder in folders:
        for other in folders:
            (folder / f"to_{other.name}").symlink_to(other)
    found = files_by_name(tmp_path, None)
    assert {f"f{i}/image" for i in range(20)} <= set(found)
    assert len(found) <= 40


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("a.png", "below/b.png"):
        (tmp_path / name).touch()
    there = [str(tmp_path / name) for name in ("a.png", "below/b.png", "below/../a.png")]
    absent = [str(tmp_path / name) for name in ("b.png", "nowhere/a.png", "below/a.png")]
    absent += [f"{tmp_path}/{'a' * 5000}.png", f"{tmp_path}/{'a' * 5000}/a.png", f"{tmp_path}/a\0"]
    assert sorted(missing_files(there + absent + ["https://host/a.png"])) == sorted(absent)
