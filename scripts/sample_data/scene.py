"""One image of the sample data set: handwritten digits pasted on a crop of a photograph."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vitadapter.sample_data.sources import DigitPool, photo_region

__all__ = ["MIN_VISIBLE_SHARE", "PlacedDigit", "Scene", "crop_photo", "draw_scene"]

MAX_DIGITS = 6
# Height of a digit's 8 x 8 bitmap as a share of the image side, drawn log-uniformly.
DIGIT_SIZES = (0.14, 0.75)
DIGIT_ASPECTS = (0.85, 1.1)  # width over height of one cell of the bitmap
MAX_ROTATION = 0.2  # radians
# Ink above this share of the bitmap's darkest cell belongs to the stroke: strokes come out about
# one and a half cells wide, and most holes of 0, 6, 8 and 9 stay open.
STROKE_LEVEL = 0.4
EDGE_SHARPNESS = 1.5  # makes the anti-aliased edge about one pixel wide at every size

MIN_VISIBLE_SHARE = 0.5  # of its own mask that every digit keeps under later ones
MIN_VISIBLE_AREA = 24 / 128**2  # as a share of the image
PLACEMENT_TRIES = 20

# Euclidean RGB distance that a digit's colour keeps from (almost) all pixels around it.
MIN_COLOUR_DISTANCE = 140
COLOUR_CANDIDATES = 24
COLOUR_PIXELS = 256


@dataclass(frozen=True)
class PlacedDigit:
    """A digit of a scene.

    Attributes:
        sample: index into scikit-learn's digits.
        label: 0 to 9.
        mask: ``(S, S)`` bool, the pixels at which this digit is seen.
    """

    sample: int
    label: int
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """An image and all that is known about it.

    Attributes:
        image: ``(S, S, 3)`` uint8 RGB.
        photo: ``Source.key`` of the background.
        crop: ``(x, y, w, h)`` of the background in the photo, pixels.
        digits: from the lowest to the topmost; their masks are disjoint.
    """

    image: np.ndarray
    photo: str
    crop: tuple[int, int, int, int]
    digits: tuple[PlacedDigit, ...]


def crop_photo(photo: np.ndarray, crop: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Cut a rectangle out of a photo and resize it to a square.

    Args:
        photo: ``(H, W, 3)`` uint8.
        crop: ``(x, y, w, h)`` in pixels.
        size: side of the result in pixels.

    Returns:
        ``(size, size, 3)`` uint8.
    """
    x, y, w, h = crop
    # Cut first: with `resize(box=...)` the filter would read pixels outside the crop.
    cut = Image.fromarray(photo[y : y + h, x : x + w])
    return np.array(cut.resize((size, size), Image.Resampling.BICUBIC))


def _draw_crop(
    rng: np.random.Generator, split: str, photo: np.ndarray, size: int
) -> tuple[int, int, int, int]:
    """Draw a square between a half and one and a half of ``size`` inside the split's region."""
    left, top, width, height = photo_region(split, *photo.shape[:2])
    largest = min(width, height, 3 * size // 2)
    side = int(rng.integers(-(-size // 2), largest + 1))
    x = left + int(rng.integers(width - side + 1))
    y = top + int(rng.integers(height - side + 1))
    return x, y, side, side


def _render_digit(bitmap: np.ndarray, height: float, angle: float, aspect: float) -> np.ndarray:
    """Scale and rotate a digit.

    Args:
        bitmap: ``(8, 8)`` float32 ink.
        height: of the whole bitmap in pixels of the result.
        angle: in radians.
        aspect: width of a cell over its height.

    Returns:
        ``(h, w)`` float32 opacity in [0, 1], cut to where it is not 0.
    """
    margin = 3  # cells; bicubic interpolation reaches two cells beyond the outermost ink
    ink = np.pad(bitmap / bitmap.max(), margin)
    side = int(np.ceil(1.6 * height))
    cells = 8 / height  # per pixel
    cos, sin = cells * np.cos(angle), cells * np.sin(angle)
    rows = np.array([[cos / aspect, sin / aspect], [-sin, cos]])
    offset = ink.shape[0] / 2 - rows @ (side / 2, side / 2)
    coefficients = np.column_stack([rows, offset]).ravel().tolist()
    scaled = Image.fromarray(ink).transform(
        (side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    opacity = 0.5 + (np.asarray(scaled) - STROKE_LEVEL) * EDGE_SHARPNESS / cells
    opacity = opacity.clip(0, 1)
    ys, xs = np.flatnonzero(opacity.any(axis=1)), np.flatnonzero(opacity.any(axis=0))
    return opacity[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]


def _draw_opacity(rng: np.random.Generator, bitmap: np.ndarray, size: int) -> np.ndarray:
    """Draw height, rotation and aspect of a digit; returns its ``(h, w)`` opacity."""
    height = size * np.exp(rng.uniform(*np.log(DIGIT_SIZES)))
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    return _render_digit(bitmap, height, angle, rng.uniform(*DIGIT_ASPECTS))


def _draw_colour(rng: np.random.Generator, around: np.ndarray) -> np.ndarray:
    """Draw a colour that stands out from ``around`` (h, w, 3), or the best of the candidates."""
    pixels = around.reshape(-1, 3)
    pixels = pixels[:: -(-len(pixels) // COLOUR_PIXELS)]
    colours = rng.integers(0, 256, (COLOUR_CANDIDATES, 3)).astype(np.float32)
    distances = np.linalg.norm(colours[:, None] - pixels[None], axis=2)
    # A low percentile instead of the minimum: on a busy background no colour is far from all.
    closest = np.percentile(distances, 5, axis=1)
    far_enough = np.flatnonzero(closest >= MIN_COLOUR_DISTANCE)
    return colours[far_enough[0] if len(far_enough) else closest.argmax()]


def _draw_window(
    rng: np.random.Generator, mask: np.ndarray, owner: np.ndarray, areas: list[int]
) -> tuple[slice, slice] | None:
    """Draw a place for a new digit that leaves enough of every earlier one visible.

    Args:
        mask: ``(h, w)`` bool, the new digit.
        owner: ``(S, S)`` ints, 1 + index of the digit that a pixel shows, 0 for the background.
        areas: pixels of every earlier digit, hidden ones included.

    Returns:
        the window of ``owner`` to paste into; None when the drawn place does not do.
    """
    size, (height, width) = len(owner), mask.shape
    min_area = MIN_VISIBLE_AREA * size**2
    if max(height, width) > size or mask.sum() < min_area:
        return None
    y = int(rng.integers(size - height + 1))
    x = int(rng.integers(size - width + 1))
    window = slice(y, y + height), slice(x, x + width)
    visible = np.bincount(owner.ravel(), minlength=len(areas) + 1)
    hidden = np.bincount(owner[window][mask], minlength=len(areas) + 1)
    left = (visible - hidden)[1:]
    if (left < np.maximum(MIN_VISIBLE_SHARE * np.array(areas), min_area)).any():
        return None
    return window


def draw_scene(
    rng: np.random.Generator,
    split: str,
    photos: Mapping[str, np.ndarray],
    pool: DigitPool,
    size: int,
) -> Scene:
    """Draw one image: up to 6 digits, later ones over earlier ones, on a crop of a photo.

    Args:
        rng: the source of every choice.
        split: a name of ``sources.SPLITS``; decides from where crops may come.
        photos: ``(H, W, 3)`` uint8 RGB by name.
        pool: the digits of the split.
        size: side of the image in pixels.
    """
    name = list(photos)[rng.integers(len(photos))]
    crop = _draw_crop(rng, split, photos[name], size)
    canvas = crop_photo(photos[name], crop, size).astype(np.float32)
    owner = np.zeros((size, size), dtype=np.int64)
    samples: list[int] = []
    areas: list[int] = []
    wanted = int(rng.integers(1, MAX_DIGITS + 1))
    for _ in range(wanted * PLACEMENT_TRIES):
        if len(samples) == wanted:
            break
        sample = int(rng.choice(pool.samples))
        opacity = _draw_opacity(rng, pool.bitmaps[sample], size)
        mask = opacity >= 0.5
        window = _draw_window(rng, mask, owner, areas)
        if window is None:
            continue
        colour = _draw_colour(rng, canvas[window])
        canvas[window] += opacity[..., None] * (colour - canvas[window])
        samples.append(sample)
        areas.append(int(mask.sum()))
        owner[window][mask] = len(samples)
    digits = tuple(
        PlacedDigit(sample, int(pool.labels[sample]), owner == 1 + index)
        for index, sample in enumerate(samples)
    )
    return Scene(canvas.round().astype(np.uint8), name, crop, digits)
