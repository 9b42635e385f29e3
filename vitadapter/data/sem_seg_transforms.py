"""Resizing as in the official segmentation recipes: OpenCV, without antialiasing."""

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform

__all__ = ["RandomResize", "ResizeToFit", "StretchToMultiple", "resizes_at_ratios"]


class _Resize(Transform):
    """Bilinear for images, nearest for label maps."""

    def __init__(self, height: int, width: int, new_height: int, new_width: int) -> None:
        super().__init__()
        self.scale = (new_width / width, new_height / height)
        self.size = (new_width, new_height)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return cv2.resize(img, self.size, interpolation=cv2.INTER_LINEAR)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords * np.asarray(self.scale)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return cv2.resize(segmentation, self.size, interpolation=cv2.INTER_NEAREST)


def _resize(image: np.ndarray, new_height: int, new_width: int) -> Transform:
    height, width = image.shape[:2]
    if (height, width) == (new_height, new_width):
        return NoOpTransform()
    return _Resize(height, width, new_height, new_width)


def _fit(image: np.ndarray, short: float, long: float | None) -> Transform:
    """As large as possible with sides of at most `short` and `long`, keeping the aspect ratio."""
    height, width = image.shape[:2]
    scale = short / min(height, width)
    if long is not None:
        scale = min(scale, long / max(height, width))
    # Rounded half up, and never away.
    sides = (max(int(side * scale + 0.5), 1) for side in (height, width))
    return _resize(image, *sides)


class ResizeToFit(T.Augmentation):
    """Resizes as large as fits between a shorter and a longer side, keeping the aspect ratio.

    Args:
        short: longest shorter side in pixels.
        long: longest longer side in pixels; None for any (the official multi-scale test of BEiT).

    Raises:
        ValueError: a side is not positive, or `long` is shorter than `short`.
    """

    def __init__(self, short: int, long: int | None = None) -> None:
        super().__init__()
        if short < 1 or (long is not None and long < short):
            raise ValueError(f"1 <= short <= long is needed, got {short=}, {long=}")
        self.short = short
        self.long = long

    def get_transform(self, image: np.ndarray) -> Transform:
        """The resizing of an image (H, W, C)."""
        return _fit(image, self.short, self.long)


class RandomResize(T.Augmentation):
    """`ResizeToFit` between sides that are scaled by one random ratio.

    Args:
        short: shorter side in pixels at ratio 1.
        long: longer side in pixels at ratio 1.
        ratio_range: least and largest ratio, drawn uniformly.

    Raises:
        ValueError: a side or ratio is not positive, or the range is empty.
    """

    def __init__(
        self, short: int, long: int, ratio_range: tuple[float, float] = (0.5, 2.0)
    ) -> None:
        super().__init__()
        least, most = ratio_range
        if not 1 <= short <= long or not 0 < least <= most:
            raise ValueError(
                "1 <= short <= long and 0 < least ratio <= largest ratio are needed, got "
                f"{short=}, {long=}, ratio_range={tuple(ratio_range)}"
            )
        self.short = short
        self.long = long
        self.ratio_range = (float(least), float(most))

    def get_transform(self, image: np.ndarray) -> Transform:
        """The resizing of an image (H, W, C)."""
        # The global generator is the one that Detectron2 seeds in each worker.
        ratio = np.random.uniform(*self.ratio_range)  # noqa: NPY002
        return _fit(image, max(int(self.short * ratio), 1), max(int(self.long * ratio), 1))


class StretchToMultiple(T.Augmentation):
    """Stretches each side up to a multiple, so that nothing has to be padded.

    Args:
        divisor: in pixels.

    Raises:
        ValueError: `divisor` is not positive.
    """

    def __init__(self, divisor: int = 32) -> None:
        super().__init__()
        if divisor < 1:
            raise ValueError(f"divisor must be positive, got {divisor}")
        self.divisor = divisor

    def get_transform(self, image: np.ndarray) -> Transform:
        """The stretching of an image (H, W, C)."""
        return _resize(
            image, *(-(-side // self.divisor) * self.divisor for side in image.shape[:2])
        )


def resizes_at_ratios(
    ratios: Sequence[float],
    *,
    short: int,
    long: int | None,
    least_short: int = 1,
    divisor: int | None = None,
) -> list[list[T.Augmentation]]:
    """The scales of multi-scale testing: sides that are scaled by each of some ratios.

    Args:
        ratios: one for each scale.
        short: shorter side in pixels at ratio 1.
        long: longer side in pixels at ratio 1; None for any.
        least_short: the shorter side at any ratio has at least so many pixels.
        divisor: each side is stretched up to a multiple of it; None for not.

    Returns:
        list: for each ratio the augmentations that follow each other.

    Raises:
        ValueError: a side that is not positive, or `long` is shorter than `short`.
    """
    stretch = [] if divisor is None else [StretchToMultiple(divisor)]
    scales = []
    for ratio in ratios:
        longest = None if long is None else round(long * ratio)
        scales.append([ResizeToFit(max(round(short * ratio), least_short), longest), *stretch])
    return scales
