"""Draws semantic segmentation: image, truth and prediction side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import cv2
import numpy as np
import pycocotools.mask as mask_util

from vitadapter.data.dataset_source import Record
from vitadapter.data.image_files import read_image
from vitadapter.data.sem_seg import LabelReader
from vitadapter.visualization.gallery import OVERVIEW, choose_images
from vitadapter.visualization.overlays import (
    Palette,
    draw_label_map,
    draw_legend,
    fitted,
    greyed,
)
from vitadapter.visualization.panels import Panel, arrange
from vitadapter.visualization.style import CAPTION_SIZE

__all__ = ["PredictedSegment", "draw_sem_seg_gallery", "predicted_labels", "read_predictions"]

_TILE_SIDE = 256  # pixels of the longer side of an image on the sheet


class PredictedSegment(TypedDict):
    """The predicted mask of a class, as Detectron2's evaluator writes it."""

    file_name: str
    category_id: int
    segmentation: dict[str, object]


def read_predictions(path: Path) -> dict[str, list[PredictedSegment]]:
    """The predicted masks of each image's file, which Detectron2's evaluator writes.

    Raises:
        ValueError: the file is missing or broken.
    """
    if not path.is_file():
        raise ValueError(
            f"{path}, the predictions that an evaluation writes, does not exist or is a folder"
        )
    try:
        by_image: dict[str, list[PredictedSegment]] = {}
        for segment in json.loads(path.read_text()):
            by_image.setdefault(segment["file_name"], []).append(segment)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold predicted segments: {error!r}") from error
    return by_image


def predicted_labels(
    segments: Sequence[PredictedSegment], shape: tuple[int, int], ignore_label: int
) -> np.ndarray:
    """The label map (H, W) of an image's masks; pixels in none have the label `ignore_label`.

    Raises:
        ValueError: a mask does not have the (height, width) `shape`.
    """
    labels = np.full(shape, ignore_label, dtype=np.int64)
    for segment in segments:
        mask = mask_util.decode(segment["segmentation"]).astype(bool)
        if mask.shape != shape:
            raise ValueError(
                f"the prediction for {segment['file_name']} has (height, width) {mask.shape}, "
                f"the image {shape}"
            )
        labels[mask] = segment["category_id"]
    return labels


def _overlay(image: np.ndarray, labels: np.ndarray, palette: Palette) -> np.ndarray:
    """The image in grey (H, W, 3) with the colours of its labels, and white lines between these.

    Ignored pixels stay grey.
    """
    known = (labels >= 0) & (labels < len(palette.names))
    shown = np.where(known, labels, -1)
    return draw_label_map(greyed(image), shown, palette, ids=shown)


def _with_legend(picture: np.ndarray, palette: Palette) -> np.ndarray:
    every = range(len(palette.names))
    return np.concatenate([picture, draw_legend(every, palette, picture.shape[1], CAPTION_SIZE)])


def _save(path: Path, image: np.ndarray) -> Path:
    if not cv2.imwrite(str(path), np.ascontiguousarray(image[:, :, ::-1])):
        raise OSError(f"{path} cannot be written")
    return path


def draw_sem_seg_gallery(
    records: Sequence[Record],
    predictions_file: str | Path,
    output_dir: str | Path,
    *,
    read_label: LabelReader,
    class_names: Sequence[str],
    num_images: int = 8,
    seed: int = 0,
) -> list[Path]:
    """Draws image, truth and prediction for a random choice of evaluated images.

    Args:
        records: data set dicts with "file_name" and "sem_seg_file_name".
        predictions_file: `sem_seg_predictions.json`, which Detectron2's evaluator writes.
        output_dir: folder for one .png per image and `overview.png` with all of them.
        read_label: reads the label maps.
        class_names: in the order of the labels.
        num_images: maximum number of images.
        seed: decides which images are drawn; not negative.

    Returns:
        The files, the sheet last.

    Raises:
        ValueError: there are no predictions, or none for these images.
    """
    segments = read_predictions(Path(predictions_file).expanduser())
    evaluated = [i for i, record in enumerate(records) if record["file_name"] in segments]
    if not evaluated:
        raise ValueError(f"{predictions_file} holds no prediction for any of the images")
    palette = Palette(class_names)
    output = Path(output_dir).expanduser()
    output.mkdir(parents=True, exist_ok=True)
    written, rows = [], []
    for index in choose_images(evaluated, num_images, seed):
        name = str(records[index]["file_name"])
        image = np.ascontiguousarray(read_image(name, "RGB"))
        truth = read_label(str(records[index]["sem_seg_file_name"]))
        predicted = predicted_labels(segments[name], image.shape[:2], read_label.ignore_label)
        panels = [
            Panel(image, Path(name).name),
            Panel(_overlay(image, truth, palette), "ground truth"),
            Panel(_overlay(image, predicted, palette), "prediction"),
        ]
        picture = _with_legend(arrange([panels]), palette)
        written.append(_save(output / f"{index:05d}_{Path(name).stem}.png", picture))
        rows.append([Panel(fitted(panel.image, _TILE_SIDE), panel.caption) for panel in panels])
    written.append(
        _save(output / OVERVIEW, _with_legend(arrange(rows, 2 if len(rows) > 2 else 1), palette))
    )
    return written
