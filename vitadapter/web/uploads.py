"""Uploaded images and what a model finds in them; each upload is deleted as soon as it is read."""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from detectron2.data.catalog import Metadata

from vitadapter.data.image_files import open_image, read_image
from vitadapter.engine.prediction_files import (
    PREDICTIONS,
    FoundWriter,
    InputFiles,
    dataset_ids,
    merge_json,
    picture_suffix,
)
from vitadapter.engine.predictor import Prediction
from vitadapter.visualization.overlays import Palette
from vitadapter.visualization.predictions import (
    EVERYTHING,
    Found,
    Selection,
    Shown,
    class_names,
)

__all__ = ["Answer", "Answerer", "Limits", "Predictor", "read_upload"]

logger = logging.getLogger(__name__)

_UNNAMED = "image.png"  # snapshots of a camera have no names


class Predictor(Protocol):
    """What `LazyPredictor` and `ExportedPredictor` have in common."""

    metadata: Metadata

    def __call__(self, image: np.ndarray) -> Prediction:
        """Predicts an image (H, W, 3), uint8 in BGR order."""


@dataclass(frozen=True)
class Limits:
    """How large uploads may be.

    Args:
        megabytes: of a file, in 10^6 bytes.
        megapixels: of an image, in 10^6 pixels.

    Raises:
        ValueError: one of them is not positive.
    """

    megabytes: float = 25
    megapixels: float = 25

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"the {name} of an upload must be more than 0, got {value}")

    @property
    def bytes(self) -> int:
        """Of a file."""
        return int(self.megabytes * 1e6)

    @property
    def pixels(self) -> int:
        """Of an image."""
        return int(self.megapixels * 1e6)


def read_upload(file: Path, name: str, limits: Limits) -> np.ndarray:
    """Reads an uploaded image as `vitadapter predict` reads a file, and deletes it.

    Args:
        file: where it lies.
        name: what its user calls it.
        limits: those of pixels are checked before the image is decoded.

    Returns:
        (H, W, 3) uint8 in BGR order.

    Raises:
        ValueError: it is no image, damaged or too large; says so of `name`.
    """
    try:
        with open_image(file) as image:
            width, height = image.size
            if width * height > limits.pixels:
                raise ValueError(
                    f"it has {width} x {height} pixels, but the page takes images of up to "
                    f"{limits.megapixels:g} megapixels (--max-megapixels)"
                )
        return np.ascontiguousarray(read_image(str(file), "BGR"))
    except ValueError as error:  # which names the file
        raise ValueError(str(error).replace(str(file), name)) from error
    finally:
        file.unlink(missing_ok=True)


@dataclass(frozen=True)
class Answer:
    """What a model finds in an upload.

    Args:
        name: of the upload.
        image: (H, W, 3) BGR.
        found: all of it.
    """

    name: Path
    image: np.ndarray
    found: Found


class Answerer:
    """Answers uploads with what a model finds in them, and writes it as `vitadapter predict` does.

    Args:
        predictor: of images.
        limits: of uploads.
        folder: to write to.

    Attributes:
        limits: of uploads.
        names: of all classes; none if they are not known.
        palette: of the classes.
    """

    def __init__(self, predictor: Predictor, limits: Limits, folder: Path) -> None:
        self.names = class_names(predictor.metadata)
        self.palette = Palette(self.names)
        self._ids = dataset_ids(predictor.metadata)
        self.limits = limits
        self._predictor = predictor
        self._folder = folder

    def answer(self, file: Path, name: str | None) -> Answer:
        """Runs the model on an upload, which is deleted.

        Args:
            file: where it lies.
            name: what its user calls it, if it has a name.

        Raises:
            ValueError: it cannot be read, or the model does not take it; for its user to read.
        """
        name = Path(name or _UNNAMED).name or _UNNAMED
        image = read_upload(file, name, self.limits)
        try:
            return Answer(Path(name), image, Found.of(self._predictor(image)))
        except ValueError:  # such as the sizes that an exported file takes
            raise
        except Exception as error:  # such as a GPU without memory: the page must go on
            logger.exception("the model failed on an image of %s pixels", image.shape[:2])
            raise ValueError(f"the model failed on {name}: {type(error).__name__}") from error

    def write_picture(self, answer: Answer, selection: Selection, shown: Shown) -> Path:
        """Writes the drawn picture, and returns its file."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        file = folder / f"{answer.name.stem}_drawn{picture_suffix(answer.name)}"
        self._write(InputFiles(picture=file), answer, selection, shown)
        return file

    def write_json(self, answer: Answer, selection: Selection) -> Path:
        """Writes `predictions.json`, and returns its file."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        file = folder / f"{answer.name.stem}.json"
        self._write(InputFiles(json=file), answer, selection, EVERYTHING)
        merge_json([file], folder)
        file.unlink()
        return folder / PREDICTIONS

    def _write(self, files: InputFiles, answer: Answer, selection: Selection, shown: Shown) -> None:
        folder, name = files.paths()[0].parent, answer.name
        opened = FoundWriter.open(files, folder, name, self.palette, self._ids, shown=shown)
        with opened as writer:
            writer.add(answer.image, selection.of(answer.found))
