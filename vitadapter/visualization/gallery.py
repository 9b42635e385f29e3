"""Draws predictions next to the ground truth, one picture per image and all on one sheet."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from detectron2.structures import BoxMode
from PIL import Image, ImageOps
from pycocotools.coco import COCO

from vitadapter.data.coco.json_entries import Id, image_path
from vitadapter.data.coco.results import EvaluatedImages, Instance, load_results
from vitadapter.data.image_files import read_record_image
from vitadapter.visualization.overlays import Objects, Palette, draw_objects, greyed
from vitadapter.visualization.panels import Panel, arrange

__all__ = ["OVERVIEW", "choose_images", "draw_gallery"]

_T = TypeVar("_T")

OVERVIEW = "overview.png"
"""The sheet with all pictures."""

_MAX_OVERVIEW_BYTES = 1_000_000
# The longer side of an image in pixels: the minimum in its own picture, and the size on the sheet.
_PICTURE_SIDE = 512
_TILE_SIDE = 256
_CAPTION_LENGTH = 16  # characters of a file name that fit above a tile


def choose_images(image_ids: Sequence[_T], count: int, seed: int) -> list[_T]:
    """Chooses images at random but evenly: one from each of `count` equal parts of the ids.

    Args:
        image_ids: ids to choose from, in their order.
        count: number of images; all are chosen if there are fewer.
        seed: decides which ones; not negative.

    Raises:
        ValueError: `count` is not positive, `seed` is negative, or there is no image.
    """
    if count < 1:
        raise ValueError(f"the number of images must be at least 1, got {count}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative, got {seed}")
    if not image_ids:
        raise ValueError("there must be images with annotations to choose from, got none")
    rng = np.random.default_rng(seed)
    parts = np.array_split(np.arange(len(image_ids)), min(count, len(image_ids)))
    return [image_ids[rng.choice(part)] for part in parts]


def _label(instance: Instance, api: COCO) -> str:
    name = str(api.cats[instance["category_id"]]["name"])
    if "score" in instance:
        return f"{name} {instance['score']:.0%}"
    return f"{name} (crowd)" if instance.get("iscrowd") else name


def _draw_instances(
    image: np.ndarray, instances: Sequence[Instance], api: COCO, side: int
) -> np.ndarray:
    """The image (H, W, 3) in grey, with a longer side of `side` pixels, and its instances."""
    scale = side / max(image.shape[:2])
    size = tuple(max(1, round(length * scale)) for length in image.shape[1::-1])
    method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    # The best first, because they get their label first.
    ordered = sorted(instances, key=lambda i: -float(i.get("score", 1)))
    numbers = {id_: number for number, id_ in enumerate(sorted(api.cats))}
    boxes = np.array([i["bbox"] for i in ordered], dtype=np.float64).reshape(-1, 4)
    objects = Objects(
        [numbers[instance["category_id"]] for instance in ordered],
        BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) * scale,
        [_mask(instance, api, size) for instance in ordered],
        [_label(instance, api) for instance in ordered],
    )
    return draw_objects(cv2.resize(greyed(image), size, interpolation=method), objects, Palette())


def _mask(instance: Instance, api: COCO, size: tuple[int, ...]) -> np.ndarray:
    """The mask of an instance at the size (width, height); empty if it has none."""
    if "segmentation" not in instance:
        return np.zeros(size[::-1], dtype=bool)
    levels = api.annToMask(instance).astype(np.float32)
    return cv2.resize(levels, size, interpolation=cv2.INTER_LINEAR) > 0.5


def _count_columns(pairs: int) -> int:
    """The number of pairs per row: it should fill the last row, and be close to a square."""
    if pairs <= 2:
        return 1
    square = math.ceil(math.sqrt(pairs))
    if pairs > 16:
        return square
    return min((2, 3, 4), key=lambda columns: (-pairs % columns, abs(columns - square)))


def _save_small(image: Image.Image, path: Path) -> None:
    """Saves with as many pixels, and as many bits per colour, as the limit of the size allows."""
    while True:
        for bits in (8, 7, 6):
            buffer = io.BytesIO()
            ImageOps.posterize(image, bits).save(buffer, "png", optimize=True)
            if buffer.tell() < _MAX_OVERVIEW_BYTES:
                path.write_bytes(buffer.getvalue())
                return
        image = image.resize(
            [round(0.8 * length) for length in image.size], Image.Resampling.LANCZOS
        )


class _Painter:
    """Draws ground truth and predictions of single images of a data set."""

    def __init__(self, data: EvaluatedImages, image_root: Path, score_threshold: float) -> None:
        self._data = data
        self._image_root = image_root
        self._threshold = score_threshold

    def read(self, image_id: Id) -> np.ndarray:
        """Reads an image (H, W, 3) RGB."""
        record = self._data.api.imgs[image_id]
        path = image_path(self._image_root, record["file_name"])
        return np.ascontiguousarray(read_record_image({**record, "file_name": path}, "RGB"))

    def draw(self, image_id: Id, image: np.ndarray, side: int) -> tuple[Panel, Panel]:
        """Draws ground truth and predictions on the image, with a longer side of `side` pixels."""
        api = self._data.api
        predictions = self._data.predictions[image_id]
        kept = [p for p in predictions if p["score"] >= self._threshold]
        name = Path(api.imgs[image_id]["file_name"]).name
        short = name if len(name) <= _CAPTION_LENGTH else f"…{name[1 - _CAPTION_LENGTH :]}"
        truth = _draw_instances(image, api.imgToAnns[image_id], api, side)
        predicted = _draw_instances(image, kept, api, side)
        return (
            Panel(truth, f"{short}: ground truth"),
            Panel(predicted, f"predictions (score ≥ {self._threshold:g})"),
        )


def _picture_names(api: COCO, image_ids: Sequence[Id]) -> list[str]:
    """File names like those of the images. The image id is added to a name that occurs twice."""
    names = [Path(OVERVIEW).stem]
    for image_id in image_ids:
        stem = Path(api.imgs[image_id]["file_name"]).stem
        names.append(f"{stem}_{image_id}" if stem in names else stem)
    return [f"{name}.png" for name in names[1:]]


def draw_gallery(
    json_file: str | Path,
    image_root: str | Path,
    results_file: str | Path,
    output_dir: str | Path,
    *,
    num_images: int = 16,
    score_threshold: float = 0.5,
    seed: int = 0,
) -> list[Path]:
    """Draws predictions next to the ground truth for a random choice of annotated images.

    Args:
        json_file: annotations in COCO's instances format.
        image_root: folder that the file names in `json_file` are relative to.
        results_file: detections in COCO's results format, as COCOEvaluator writes them.
        output_dir: folder for one .png per image and `overview.png`, a sheet below 1 MB with all.
        num_images: maximum number of images.
        score_threshold: predictions below this score, in [0, 1], are not drawn.
        seed: decides which images are drawn; not negative.

    Returns:
        The files, the sheet last.

    Raises:
        ValueError: a file is missing or broken, predictions belong to other images, or a number
            is out of range.
    """
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"the score threshold must be in [0, 1], got {score_threshold}")
    data = load_results(json_file, results_file)
    chosen = choose_images(data.annotated_ids(), num_images, seed)
    painter = _Painter(data, Path(image_root).expanduser(), score_threshold)
    output = Path(output_dir).expanduser()
    output.mkdir(parents=True, exist_ok=True)
    tiles, written = [], []
    for image_id, name in zip(chosen, _picture_names(data.api, chosen), strict=True):
        image = painter.read(image_id)
        tiles.append(painter.draw(image_id, image, _TILE_SIDE))
        picture = painter.draw(image_id, image, max(_PICTURE_SIDE, *image.shape[:2]))
        written.append(output / name)
        Image.fromarray(arrange([picture])).save(written[-1])
    written.append(output / OVERVIEW)
    sheet = arrange(tiles, _count_columns(len(tiles)))
    _save_small(Image.fromarray(sheet), written[-1])
    return written
