"""Draws mapped images with their boxes, masks, label maps and segments, many to a sheet."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor

from vitadapter.data.dataset_mapper import Sample
from vitadapter.visualization.overlays import (
    Objects,
    Palette,
    draw_label_map,
    draw_legend,
    draw_objects,
    fitted,
)
from vitadapter.visualization.panels import Panel, arrange
from vitadapter.visualization.style import CAPTION_SIZE

__all__ = ["PER_SHEET", "Tile", "draw_sample", "draw_sheet", "shown_image"]

PER_SHEET = 12
"""Images of a sheet."""

_COLUMNS = 4
_SIDE = 360  # of an image on the sheet, in pixels
_GAP = 8
_NOTHING = -1  # in label maps
_NO_LABEL = 255  # in semantic maps of detectors


@dataclass(frozen=True)
class Tile:
    """A drawn image (H, W, 3) RGB, its caption, and the classes that it shows."""

    image: np.ndarray
    caption: str
    classes: frozenset[int]


def shown_image(image: Tensor, image_format: str | int) -> np.ndarray:
    """What a model gets, as an image (H, W, 3) uint8 RGB.

    Of more than three channels the first three are shown, of two both as red and green. Numbers
    that are not 8-bit are scaled, the smallest to black and the largest to white.

    Args:
        image: (C, H, W).
        image_format: the order of its channels, "BGR" or another.
    """
    pixels = image.numpy(force=True).transpose(1, 2, 0)
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    elif pixels.shape[2] == 2:
        pixels = np.concatenate([pixels, np.zeros_like(pixels[:, :, :1])], axis=2)
    pixels = pixels[:, :, :3]
    if pixels.dtype != np.uint8:
        values = np.nan_to_num(pixels.astype(np.float64))
        low, high = values.min(), values.max()
        pixels = ((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)
    return np.ascontiguousarray(pixels[:, :, ::-1] if image_format == "BGR" else pixels)


def _mask_arrays(masks: BitMasks | PolygonMasks, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """The masks (H, W) bool of an image of the size (H, W), one by one."""
    if isinstance(masks, BitMasks):
        yield from masks.tensor.numpy()
        return
    for polygons in masks.polygons:
        parts = mask_util.frPyObjects([points.tolist() for points in polygons], *size)
        yield mask_util.decode(mask_util.merge(parts)).astype(bool)


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask at another size (H, W). A thin object must not vanish."""
    levels = mask.astype(np.float32)
    shrinks = size[0] < mask.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    resized = cv2.resize(levels, size[::-1], interpolation=method)
    return resized >= min(0.5, float(resized.max(initial=0.0)) or 0.5)


def _segments(instances: Instances, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Classes and numbers of the segments (H, W) of a panoptic map, -1 where there is none."""
    labels, ids = np.full(size, _NOTHING), np.full(size, _NOTHING)
    for number, kind in enumerate(instances.gt_classes.tolist()):
        mask = cv2.resize(
            instances.gt_masks.tensor[number].numpy().astype(np.uint8),
            size[::-1],
            interpolation=cv2.INTER_NEAREST,
        ).astype(bool)
        labels[mask], ids[mask] = kind, number
    return labels, ids


def _draw_instances(image: np.ndarray, instances: Instances, palette: Palette) -> np.ndarray:
    size = (image.shape[0], image.shape[1])
    kinds = instances.gt_classes.tolist()
    scale = np.array([size[1] / instances.image_size[1], size[0] / instances.image_size[0]] * 2)
    masks = None
    if instances.has("gt_masks"):
        whole = _mask_arrays(instances.gt_masks, instances.image_size)
        masks = [_resized(mask, size) for mask in whole]
    boxes = instances.gt_boxes.tensor.numpy() * scale
    labels = [palette.name(kind) for kind in kinds]
    return draw_objects(image, Objects(kinds, boxes, masks, labels), palette)


def _resized_labels(labels: Tensor, size: tuple[int, int], num_classes: int) -> np.ndarray:
    """The label map at the size (H, W), -1 where it has no class."""
    resized = cv2.resize(
        labels.numpy().astype(np.int32), size[::-1], interpolation=cv2.INTER_NEAREST
    )
    return np.where((resized >= 0) & (resized < num_classes), resized, _NOTHING)


def _panels(
    image: np.ndarray, sample: Sample, palette: Palette
) -> tuple[list[np.ndarray], set[int]]:
    """The image as often as its targets need it, and the classes that they show."""
    size = (image.shape[0], image.shape[1])
    instances = sample.get("instances")
    if instances is not None and instances.has("gt_boxes"):
        panels = [_draw_instances(image, instances, palette)]
        if "sem_seg" in sample:  # of other classes
            labels = _resized_labels(sample["sem_seg"], size, _NO_LABEL)
            panels.append(draw_label_map(image, labels, palette))
        return panels, set(instances.gt_classes.tolist())
    if instances is not None and instances.has("gt_masks"):
        labels, ids = _segments(instances, size)
        return [image, draw_label_map(image, labels, palette, ids)], set(np.unique(labels).tolist())
    if "sem_seg" in sample:
        labels = _resized_labels(sample["sem_seg"], size, len(palette.names))
        return [image, draw_label_map(image, labels, palette)], set(np.unique(labels).tolist())
    return [image], set()


def draw_sample(sample: Sample, image_format: str | int, palette: Palette, note: str = "") -> Tile:
    """Draws a mapped image with its targets.

    Args:
        sample: of a mapper.
        image_format: the order of its channels.
        palette: of the classes.
        note: end of the caption.
    """
    pixels = shown_image(sample["image"], image_format)
    panels, classes = _panels(fitted(pixels, _SIDE), sample, palette)
    height, width = pixels.shape[:2]
    caption = f"{Path(sample['file_name']).name}, {width} x {height}{note}"
    return Tile(_beside(panels), caption, frozenset(classes - {_NOTHING}))


def _beside(panels: Sequence[np.ndarray]) -> np.ndarray:
    gap = np.full((panels[0].shape[0], _GAP // 2, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


def draw_sheet(tiles: Sequence[Tile], palette: Palette) -> np.ndarray:
    """Arranges images in rows, each below its caption, above a legend of their classes.

    Args:
        tiles: at least one.
        palette: of the classes.

    Returns:
        (H, W, 3) RGB.
    """
    width = max(tile.image.shape[1] for tile in tiles)
    columns = max(1, _COLUMNS * (_SIDE + _GAP) // (width + _GAP))
    sheet = arrange([[Panel(tile.image, tile.caption)] for tile in tiles], columns)
    shown = sorted(frozenset().union(*(tile.classes for tile in tiles)))
    return np.concatenate([sheet, draw_legend(shown, palette, sheet.shape[1], CAPTION_SIZE)])
