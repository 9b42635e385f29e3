"""Draws predictions next to the ground truth, one picture per image and all on one sheet."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import GenericMask, Visualizer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from pycocotools.coco import COCO

from vitadapter.data.coco.json_entries import Id, image_path
from vitadapter.data.coco.results import EvaluatedImages, Instance, load_results
from vitadapter.data.image_files import read_record_image
from vitadapter.visualization.figures import class_color
from vitadapter.visualization.overlays import greyed

__all__ = ["OVERVIEW", "choose_images", "draw_gallery"]

_T = TypeVar("_T")

OVERVIEW = "overview.png"
"""The sheet with all pictures."""

_MAX_OVERVIEW_BYTES = 1_000_000
# The longer side of an image in pixels: the minimum in its own picture, and the size on the sheet.
_PICTURE_SIDE = 512
_TILE_SIDE = 256
_DPI = 100
_INNER_GAP, _OUTER_GAP, _CAPTION_HEIGHT, _FONT_SIZE = 6, 20, 24, 13  # in pixels
_CAPTION_LENGTH = 16  # characters of a file name that fit above a tile
_MASK_OPACITY = 0.5
_MAX_FONT_SCALE = 1.4


@dataclass(frozen=True)
class _Panel:
    """An image (H, W, 3) RGB with instances, and the caption above it."""

    caption: str
    image: np.ndarray


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


def _draw_mask(visualizer: Visualizer, mask: np.ndarray, color: tuple[float, float, float]) -> None:
    """Fills and outlines a mask of the original size, without its holes."""
    height, width = visualizer.img.shape[:2]
    soft = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    visualizer.draw_soft_mask(soft, color, alpha=_MASK_OPACITY)
    for polygon in GenericMask((soft > 0.5).astype(np.uint8), height, width).polygons:
        visualizer.draw_polygon(polygon.reshape(-1, 2), color, alpha=0)


def _draw_instances(
    image: np.ndarray, instances: Sequence[Instance], api: COCO, side: int
) -> np.ndarray:
    """The image (H, W, 3) in grey, with a longer side of `side` pixels, and its instances."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    visualizer = Visualizer(
        cv2.resize(greyed(image), size, interpolation=method),
        font_size_scale=min(_MAX_FONT_SCALE, math.sqrt(side / _TILE_SIDE)),
    )
    palette = {id_: class_color(number) for number, id_ in enumerate(sorted(api.cats))}
    ordered = sorted(instances, key=lambda i: i["bbox"][2] * i["bbox"][3], reverse=True)
    for instance in ordered:
        if "segmentation" in instance:
            _draw_mask(visualizer, api.annToMask(instance), palette[instance["category_id"]])
    boxes = np.array([i["bbox"] for i in ordered], dtype=np.float64).reshape(-1, 4)
    visualizer.overlay_instances(
        boxes=BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) * scale,
        labels=[_label(instance, api) for instance in ordered],
        assigned_colors=[palette[instance["category_id"]] for instance in ordered],
    )
    return visualizer.get_output().get_image()


def _compose(pairs: Sequence[tuple[_Panel, _Panel]], columns: int) -> Image.Image:
    """Arranges pairs of panels in rows of `columns` pairs, each panel below its caption."""
    panel_height = max(panel.image.shape[0] for pair in pairs for panel in pair)
    panel_width = max(panel.image.shape[1] for pair in pairs for panel in pair)
    row_height = _CAPTION_HEIGHT + panel_height + _INNER_GAP
    column_width = 2 * panel_width + _INNER_GAP + _OUTER_GAP
    width = columns * column_width - _OUTER_GAP + 2 * _INNER_GAP
    height = math.ceil(len(pairs) / columns) * row_height
    # A hundredth of a pixel more, because matplotlib rounds down.
    figure = Figure(figsize=((width + 0.01) / _DPI, (height + 0.01) / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    for number, pair in enumerate(pairs):
        top = number // columns * row_height
        for place, panel in enumerate(pair):
            left = number % columns * column_width + place * (panel_width + _INNER_GAP)
            left += _INNER_GAP
            bottom = height - top - _CAPTION_HEIGHT - panel.image.shape[0]
            figure.figimage(panel.image, left, bottom, origin="upper")
            figure.text(
                left / width,
                1 - (top + _CAPTION_HEIGHT / 2) / height,
                panel.caption,
                fontsize=_FONT_SIZE * 72 / _DPI,
                verticalalignment="center",
                color="#333333",
                parse_math=False,
            )
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3])


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

    def draw(self, image_id: Id, image: np.ndarray, side: int) -> tuple[_Panel, _Panel]:
        """Draws ground truth and predictions on the image, with a longer side of `side` pixels."""
        api = self._data.api
        predictions = self._data.predictions[image_id]
        kept = [p for p in predictions if p["score"] >= self._threshold]
        name = Path(api.imgs[image_id]["file_name"]).name
        short = name if len(name) <= _CAPTION_LENGTH else f"…{name[1 - _CAPTION_LENGTH :]}"
        truth = _draw_instances(image, api.imgToAnns[image_id], api, side)
        predicted = _draw_instances(image, kept, api, side)
        return (
            _Panel(f"{short}: ground truth", truth),
            _Panel(f"predictions (score ≥ {self._threshold:g})", predicted),
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
        _compose([picture], 1).save(written[-1])
    written.append(output / OVERVIEW)
    _save_small(_compose(tiles, _count_columns(len(tiles))), written[-1])
    return written
