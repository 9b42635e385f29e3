import json
import shutil
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from PIL import Image
from web_samples import TwoBoxes, write_photo

pytest.importorskip("gradio")

from vitadapter.data.image_files import read_image
from vitadapter.visualization.predictions import Selection, Shown
from vitadapter.web.uploads import Answerer, Limits, read_upload


def write_kinds(folder: Path) -> list[Path]:
    """Rotated by EXIF, grey, with alpha, and of 16 bits."""
    photo = Image.open(write_photo(folder / "photo.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "rotated.jpg", exif=exif)
    photo.convert("L").save(folder / "grey.png")
    photo.convert("RGBA").save(folder / "alpha.png")
    levels = np.asarray(photo.convert("L")).astype(np.uint16) * 257
    Image.fromarray(levels).save(folder / "deep.tiff")
    return sorted(folder.iterdir())


def test_uploads_are_read_as_files_are_and_deleted(tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    for file in write_kinds(tmp_path / "uploads"):
        expected = read_image(str(file), "BGR")
        np.testing.assert_array_equal(read_upload(file, file.name, Limits()), expected)
        assert not file.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "^my.png cannot be read: it is not an image"),
        (None, "^my.png cannot be read: .*truncated"),
    ],
)
def test_what_is_no_image_is_named_as_its_user_does(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    photo = write_photo(tmp_path / "upload.png")
    photo.write_bytes(photo.read_bytes()[:500] if content is None else content)
    with pytest.raises(ValueError, match=message) as caught:
        read_upload(photo, "my.png", Limits())
    assert str(tmp_path) not in str(caught.value)
    assert not photo.exists()


def test_pixels_are_counted_before_they_are_decoded(tmp_path: Path, monkeypatch) -> None:
    large = tmp_path / "large.png"
    content = bytearray(write_photo(large).read_bytes())
    content[16:24] = (6000).to_bytes(4, "big") + (5000).to_bytes(4, "big")  # width and height
    checksum = zlib.crc32(content[12:29])
    content[29:33] = checksum.to_bytes(4, "big")
    large.write_bytes(content)
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(ValueError, match=r"6000 x 5000 pixels, .* up to 25 megapixels"):
        read_upload(large, "large.png", Limits())


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_positive(value: float) -> None:
    with pytest.raises(
        ValueError, match=f"megapixels of an upload must be more than 0, got {value}"
    ):
        Limits(megapixels=value)


def test_names_lead_nowhere(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    answerer = Answerer(TwoBoxes(), Limits(), made)
    answer = answerer.answer(write_photo(tmp_path / "a.png"), "../../there/b.png")
    picture = answerer.write_picture(answer, Selection(), Shown())
    assert picture.name == "b_drawn.png"
    assert picture.is_relative_to(made)
    assert not list(tmp_path.glob("there"))


def test_a_failing_model_is_reported(tmp_path: Path, caplog) -> None:
    def fail(image: np.ndarray) -> dict:
        raise RuntimeError("no memory")

    fail.metadata = Metadata()
    answerer = Answerer(fail, Limits(), tmp_path)
    with pytest.raises(ValueError, match=r"the model failed on a.png: RuntimeError"):
        answerer.answer(write_photo(tmp_path / "a.png"), "a.png")
    assert "no memory" in caplog.text


def test_what_is_drawn_is_chosen(tmp_path: Path) -> None:
    answerer = Answerer(TwoBoxes(), Limits(), tmp_path)
    photo = write_photo(tmp_path / "a.png", (200, 100))
    image = read_image(str(photo), "BGR")
    answer = answerer.answer(photo, "a.png")

    def drawn(*shown: bool) -> np.ndarray:
        return cv2.imread(str(answerer.write_picture(answer, Selection(0.5), Shown(*shown))))

    np.testing.assert_array_equal(drawn(False, False, False), image)
    box = drawn(True, False, False)
    changed = np.argwhere((box != image).any(axis=2))
    assert (changed.min(axis=0).tolist(), changed.max(axis=0).tolist()) == ([2, 2], [20, 20])
    label = drawn(False, False, True)
    assert (label != image).any()
    np.testing.assert_array_equal(label[20], image[20])  # the lower side of the box


def test_label_maps_and_segments(tmp_path: Path) -> None:
    """Of these, masks are the colours, and labels the legend."""
    ids = torch.zeros(30, 40, dtype=torch.int32)
    ids[:10] = 3
    segments = [{"id": 3, "category_id": 1, "isthing": True}]
    scores = torch.zeros(2, 30, 40)
    scores[1] = 1
    for number, output in enumerate(({"panoptic_seg": (ids, segments)}, {"sem_seg": scores})):

        def predict(image: np.ndarray, output: dict = output) -> dict:
            return output

        predict.metadata = Metadata(stuff_classes=["sky", "road"])
        answerer = Answerer(predict, Limits(), tmp_path)
        photo = write_photo(tmp_path / "a.png")
        image = read_image(str(photo), "BGR")
        answer = answerer.answer(photo, "a.png")
        plain = cv2.imread(str(answerer.write_picture(answer, Selection(), Shown(masks=False))))
        whole = cv2.imread(str(answerer.write_picture(answer, Selection(), Shown())))
        bare = cv2.imread(str(answerer.write_picture(answer, Selection(), Shown(labels=False))))
        np.testing.assert_array_equal(plain[:30], image)
        assert whole.shape == plain.shape
        assert len(whole) > len(bare) == 30
        np.testing.assert_array_equal(whole[:30], bare)
        assert (bare[:9] != image[:9]).any()
        entries = json.loads(answerer.write_json(answer, Selection()).read_text())
        (kind,) = entries if number else entries[0]["segments_info"]
        assert kind["category_name"] == "road"
        entries = json.loads(answerer.write_json(answer, Selection(classes={0})).read_text())
        assert entries == [] if number else entries[0]["segments_info"] == []
        shutil.rmtree(tmp_path, ignore_errors=True)
        tmp_path.mkdir()
