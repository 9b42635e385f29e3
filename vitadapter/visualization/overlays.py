"""Draws boxes, masks, label maps and legends on images, in the colours of the classes.

All images are (H, W, 3) uint8 in RGB, and none that is given is changed.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vitadapter.encoded_masks import EncodedMasks
from vitadapter.visualization.style import FONT_FILE, TEXT_COLOR, class_color

__all__ = [
    "Objects",
    "Palette",
    "draw_label_map",
    "draw_legend",
    "draw_objects",
    "fitted",
    "greyed",
    "shortened",
    "text_size",
    "text_width",
    "write_line",
]

_MASK_OPACITY = 0.45
_MAP_OPACITY = 0.6
# Heights of text in pixels: what can just be read, and what is large enough.
_MIN_TEXT, _MAX_TEXT = 9, 28
_TEXT_SHARE = 40  # text is so many times smaller than the image
_LARGEST_LABEL = 0.4  # of the image's height; no label is written on smaller images
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Palette:
    """Names and colours of classes.

    Args:
        names: in the order of their numbers; empty if they are not known.
    """

    names: Sequence[str] = ()

    def name(self, number: int) -> str:
        """The name of a class."""
        return str(self.names[number]) if number < len(self.names) else f"class {number}"

    def color(self, number: int) -> Color:
        """The colour of a class, in 0..255."""
        red, green, blue = (round(255 * part) for part in class_color(number))
        return red, green, blue

    def table(self, count: int) -> np.ndarray:
        """The colours (count, 3) uint8 of the first classes."""
        return np.array([self.color(number) for number in range(count)], np.uint8).reshape(-1, 3)


@dataclass(frozen=True)
class Objects:
    """Objects of an image, in its pixels.

    Args:
        classes: N numbers.
        boxes: (N, 4), x0, y0, x1, y1.
        masks: N masks (H, W) bool, each of which is taken when it is drawn; or None.
        labels: N texts.
    """

    classes: Sequence[int]
    boxes: np.ndarray
    masks: Sequence[np.ndarray] | Tensor | EncodedMasks | None
    labels: Sequence[str]


def greyed(image: np.ndarray) -> np.ndarray:
    """The image in grey, so that colours stand only for classes."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def fitted(image: np.ndarray, side: int) -> np.ndarray:
    """The image with a longer side of `side` pixels; enlarged pixels stay squares."""
    scale = side / max(image.shape[:2])
    size = tuple(max(1, round(length * scale)) for length in image.shape[1::-1])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return cv2.resize(image, size, interpolation=method)


def text_size(image: np.ndarray) -> int:
    """The height in pixels of text on an image (H, W, 3)."""
    wanted = round(math.sqrt(image.shape[0] * image.shape[1]) / _TEXT_SHARE)
    return min(max(wanted, _MIN_TEXT), _MAX_TEXT)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT_FILE, size)


def text_width(text: str, size: int) -> int:
    """The width in pixels of a line of text with a height of `size`."""
    return math.ceil(_font(size).getlength(text))


def shortened(text: str, width: int, size: int) -> str:
    """The text, or as much of its beginning as fits into `width` pixels, followed by "…"."""
    text = " ".join(text.split())
    if text_width(text, size) <= width:
        return text
    kept = next((n for n in range(len(text) - 1, 0, -1) if text_width(text[:n], size) < width), 0)
    while kept and text_width(f"{text[:kept]}…", size) > width:
        kept -= 1
    return f"{text[:kept]}…" if kept else ""


def write_line(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int) -> None:
    """Writes a caption on white; `at` is the middle of its left end."""
    draw.text(at, text, TEXT_COLOR, _font(size), anchor="lm")


def _readable_on(color: Color) -> Color:
    red, green, blue = color
    return _BLACK if 0.3 * red + 0.59 * green + 0.11 * blue > 140 else _WHITE


def _thickness(image: np.ndarray) -> int:
    return max(1, round(max(image.shape[:2]) / 500))


def _mixed(image: np.ndarray, colors: np.ndarray, opacity: float) -> np.ndarray:
    """The image below colours (H, W, 3) uint8."""
    return cv2.addWeighted(image, 1 - opacity, colors, opacity, 0)


def _draw_mask(image: np.ndarray, mask: np.ndarray | Tensor, color: Color) -> None:
    """Fills and outlines a mask (H, W) in place."""
    levels = np.ascontiguousarray(mask, dtype=np.uint8)
    x, y, width, height = cv2.boundingRect(levels)
    if width == 0:
        return
    part, inside = np.s_[y : y + height, x : x + width], levels[y : y + height, x : x + width]
    mixed = _mixed(image[part], np.full_like(image[part], color), _MASK_OPACITY)
    image[part] = np.where(inside[..., None], mixed, image[part])
    contours, _ = cv2.findContours(levels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, contours, -1, color, _thickness(image))


class _Labels:
    """Writes labels on an image so that none covers another."""

    def __init__(self, image: np.ndarray) -> None:
        self._height, self._width = image.shape[:2]
        self._size = text_size(image)
        self._picture = Image.fromarray(image)
        self._draw = ImageDraw.Draw(self._picture)
        self._taken: list[tuple[int, int, int, int]] = []

    def _is_free(self, x: int, y: int, width: int, height: int) -> bool:
        return all(
            x >= right or x + width <= left or y >= bottom or y + height <= top
            for left, top, right, bottom in self._taken
        )

    def _place(
        self, box: Sequence[float], width: int, height: int, may_cover: bool
    ) -> tuple[int, int] | None:
        """The corner of a label of a box: above, inside or below it, or None if none is free."""
        left, top, _, bottom = (round(float(side)) for side in box)
        x = max(0, min(left, self._width - width))
        last = self._height - height
        places = [(x, y) for y in (top - height, top, bottom, bottom - height) if 0 <= y <= last]
        free = [place for place in places if self._is_free(*place, width, height)]
        return next(iter(free), (x, max(0, min(top, last))) if may_cover else None)

    def write(self, box: Sequence[float], label: str, color: Color) -> None:
        """Writes a label at a box, unless all places at the box are taken."""
        height = self._size + 4
        text = shortened(label, self._width - 4, self._size)
        if not text or height > _LARGEST_LABEL * self._height:
            return
        width = text_width(text, self._size) + 4
        place = self._place(box, width, height, may_cover=not self._taken)
        if place is None:
            return
        x, y = place
        self._taken.append((x, y, x + width, y + height))
        self._draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
        middle = (x + 2, y + height // 2)
        self._draw.text(middle, text, _readable_on(color), _font(self._size), anchor="lm")

    def picture(self) -> np.ndarray:
        """The image with the labels."""
        return np.array(self._picture)


def draw_objects(
    image: np.ndarray, objects: Objects, palette: Palette, *, draw_boxes: bool = True
) -> np.ndarray:
    """The image with the masks, boxes and labels of objects.

    Smaller objects are drawn over larger ones. Earlier objects get their label first: if there is
    no place for one that would not cover another label, it is left out.

    Args:
        image: (H, W, 3) RGB.
        objects: of the image.
        palette: of their classes.
        draw_boxes: whether boxes are drawn; labels are placed at them in any case.
    """
    drawn = image.copy()
    boxes = np.asarray(objects.boxes, dtype=np.float64).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    colors = [palette.color(int(number)) for number in objects.classes]
    # OpenCV takes no numbers beyond 16 bits.
    corners = boxes.clip(-1, np.array([image.shape[1], image.shape[0]] * 2)).round().astype(int)
    for index in np.argsort(-areas, kind="stable"):
        if objects.masks is not None:
            _draw_mask(drawn, objects.masks[index], colors[index])
        if draw_boxes:
            x0, y0, x1, y1 = corners[index].tolist()
            cv2.rectangle(drawn, (x0, y0), (x1, y1), colors[index], _thickness(drawn))
    labels = _Labels(drawn)
    for box, label, color in zip(boxes.tolist(), objects.labels, colors, strict=True):
        labels.write(box, label, color)
    return labels.picture()


def _borders(ids: np.ndarray) -> np.ndarray:
    """Pixels (H, W) whose right or lower neighbour belongs to something else."""
    found = np.zeros(ids.shape, dtype=bool)
    found[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    found[:-1] |= ids[:-1] != ids[1:]
    return found


def draw_label_map(
    image: np.ndarray, labels: np.ndarray, palette: Palette, ids: np.ndarray | None = None
) -> np.ndarray:
    """The image, in grey, with the colours of the classes of its pixels.

    Args:
        image: (H, W, 3) RGB.
        labels: (H, W), numbers of classes; pixels with a negative one stay as they are.
        palette: of the classes.
        ids: (H, W), of segments, between which white lines are drawn; or None.
    """
    known = labels >= 0
    colors = palette.table(int(labels.max(initial=0)) + 1)[np.where(known, labels, 0)]
    drawn = np.where(known[..., None], _mixed(greyed(image), colors, _MAP_OPACITY), image)
    if ids is not None:
        drawn[_borders(ids)] = _WHITE
    return drawn


def draw_legend(
    classes: Iterable[int], palette: Palette, width: int, size: int, height: int | None = None
) -> np.ndarray:
    """Colour and name of classes, in rows on white.

    Args:
        classes: their numbers.
        palette: of the classes.
        width: of the legend, in pixels.
        size: height of the text, in pixels.
        height: of the legend, in pixels, whose rows are filled up or left out; None for all rows.

    Returns:
        (h, width, 3)
    """
    square, row, gap = round(0.8 * size), round(1.5 * size), size
    entries: list[tuple[int, int, int, str]] = []
    x = y = gap // 2
    for number in classes:
        text = shortened(palette.name(number), width - square - 2 * gap, size)
        needed = square + gap // 2 + text_width(text, size)
        if x > gap // 2 and x + needed + gap // 2 > width:
            x, y = gap // 2, y + row
        entries.append((number, x, y, text))
        x += needed + gap
    height = y + row if height is None else height
    picture = Image.new("RGB", (width, height), _WHITE)
    draw = ImageDraw.Draw(picture)
    for number, x, y, text in entries:
        if y + size > height:
            break
        top = y + (size - square) // 2
        draw.rectangle((x, top, x + square, top + square), fill=palette.color(number))
        write_line(draw, (x + square + gap // 2, y + size // 2), text, size)
    return np.array(picture)
