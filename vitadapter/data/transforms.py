"""Augmentations that Detectron2 lacks, and a function that applies augmentations."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import transforms as T
from detectron2.data.transforms import ColorTransform
from detectron2.projects.point_rend import ColorAugSSDTransform
from fvcore.transforms.transform import BlendTransform, NoOpTransform, PadTransform, Transform
from torch import Tensor

__all__ = [
    "Augmented",
    "PadToSize",
    "RandomChoice",
    "RandomResize",
    "ResizeToFit",
    "StretchToMultiple",
    "augment",
    "refuse_colour_augmentations",
    "resizes_at_ratios",
]


class Augmented(NamedTuple):
    """An image after augmentations."""

    image: Tensor
    """(C, H, W)"""

    sem_seg: Tensor | None
    """(H, W) int64; None if no map was given."""

    transforms: T.TransformList
    """The transforms that were applied."""


class _ChannelResize(T.ResizeTransform):
    """Resizes any channels as Pillow resizes colours; Detectron2 would not smooth floats."""

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        maps = torch.from_numpy(np.ascontiguousarray(img.transpose(2, 0, 1)))[None].float()
        size = (self.new_h, self.new_w)
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=True)
        resized = maps[0].permute(1, 2, 0).numpy()
        return resized if img.dtype != np.uint8 else resized.round().clip(0, 255).astype(np.uint8)


def _has_colours(image: np.ndarray) -> bool:
    return image.dtype == np.uint8 and image.shape[2] == 3


class _Input(T.AugInput):
    """Resizes thin images, and images without colours.

    It keeps one pixel of an image that is so thin that Detectron2's resizing rounds a side to 0.
    """

    image: np.ndarray
    sem_seg: np.ndarray | None

    def transform(self, tfm: Transform) -> None:
        if isinstance(tfm, T.ResizeTransform):
            tfm.new_h, tfm.new_w = max(tfm.new_h, 1), max(tfm.new_w, 1)
            if not _has_colours(self.image):
                smooth = _ChannelResize(tfm.h, tfm.w, tfm.new_h, tfm.new_w, tfm.interp)
                self.image = smooth.apply_image(self.image)
                if self.sem_seg is not None:
                    self.sem_seg = tfm.apply_segmentation(self.sem_seg)
                return
        super().transform(tfm)


def _channels_first(image: np.ndarray) -> np.ndarray:
    """An image (H, W, C), which may be a flipped view, as an array (C, H, W) without gaps.

    OpenCV separates colours several times as fast as numpy.
    """
    if not _has_colours(image) or image.strides[0] < 0 or abs(image.strides[1]) != 3:
        return np.ascontiguousarray(image.transpose(2, 0, 1))
    if image.strides[1] < 0:  # which OpenCV does not take
        image = cv2.flip(image[:, ::-1], 1)
    planes = np.empty((3, *image.shape[:2]), dtype=np.uint8)
    cv2.split(image, list(planes))
    return planes


def augment(
    augmentations: T.AugmentationList, image: np.ndarray, sem_seg: np.ndarray | None = None
) -> Augmented:
    """Applies augmentations to an image and its label map.

    Args:
        augmentations: applied in this order.
        image: (H, W, C); it is not changed.
        sem_seg: (H, W), or None.

    Raises:
        ValueError: no pixel is left.
    """
    aug_input = _Input(image, sem_seg=sem_seg)
    transforms = augmentations(aug_input)
    if 0 in aug_input.image.shape:
        raise ValueError(
            f"the augmentations leave no pixel of an image of (height, width) {image.shape[:2]}"
        )
    pixels = torch.as_tensor(_channels_first(aug_input.image))
    labels = None
    if aug_input.sem_seg is not None:
        labels = torch.as_tensor(np.ascontiguousarray(aug_input.sem_seg).astype(np.int64))
    return Augmented(pixels, labels, transforms)


_COLOUR = (
    ColorAugSSDTransform,
    T.RandomBrightness,
    T.RandomContrast,
    T.RandomLighting,
    T.RandomSaturation,
    ColorTransform,
    BlendTransform,
)


def _parts(augmentation: object) -> Iterator[object]:
    """An augmentation and those that it consists of."""
    yield augmentation
    if isinstance(augmentation, T.AugmentationList):
        inner: Sequence[object] = augmentation.augs
    elif isinstance(augmentation, T.RandomApply):
        inner = [augmentation.aug]
    elif isinstance(augmentation, RandomChoice):
        inner = augmentation.branches
    else:
        return
    for part in inner:
        yield from _parts(part)


def refuse_colour_augmentations(
    augmentations: Sequence[T.Augmentation | T.Transform], channels: int
) -> None:
    """Raises ValueError if an augmentation changes colours, which images of channels do not have.

    Args:
        augmentations: of a mapper.
        channels: of its images.
    """
    for index, augmentation in enumerate(augmentations):
        colour = next((part for part in _parts(augmentation) if isinstance(part, _COLOUR)), None)
        if colour is not None:
            raise ValueError(
                f"{type(colour).__name__} changes colours, but images have {channels} channels "
                f"that are taken as they are: leave augmentation {index} of the mapper out, as "
                f"~dataloader.train.mapper.augmentations.{index} does for training"
            )


class RandomChoice(T.Augmentation):
    """Draws one of several equally likely lists of augmentations, and applies it.

    With the branches `[resize]` and `[resize, crop, resize]`, it is the multi-scale training of
    DETR and Sparse R-CNN that the paper's 3x+MS schedules use.

    Args:
        branches: the lists to draw from; an empty list does not change the image.

    Raises:
        ValueError: there is no branch.
    """

    def __init__(self, branches: Sequence[Sequence[T.Augmentation | T.Transform]]) -> None:
        super().__init__()
        if len(branches) == 0:
            raise ValueError(f"RandomChoice needs at least one branch, got {branches}")
        self.branches = [T.AugmentationList(branch) for branch in branches]

    def __call__(self, aug_input: T.AugInput) -> T.TransformList:
        """Applies one branch to `aug_input` in place, and returns the transforms."""
        # The global generator is the one that Detectron2 seeds in each worker.
        drawn = np.random.randint(len(self.branches))  # noqa: NPY002
        return self.branches[drawn](aug_input)


class PadToSize(T.Augmentation):
    """Pads an image at the bottom and on the right to a fixed size, for large-scale jitter.

    Unlike Detectron2's `FixedSizeCrop`, it pads with a value for each channel. If that is the
    model's `pixel_mean`, the padding is zero (up to rounding) after normalisation.

    Args:
        size: (height, width) in pixels; a larger side is not changed.
        pixel_value: a value for each channel, in the order of the image's channels.
        seg_pad_value: value of the padding in masks and segmentation maps: 0 for masks of
            instances, the ignored label for semantic maps.

    Raises:
        ValueError: a side is not positive.
    """

    def __init__(
        self, size: tuple[int, int], pixel_value: Sequence[float], seg_pad_value: int = 0
    ) -> None:
        super().__init__()
        if min(size) < 1:
            raise ValueError(f"PadToSize needs positive sides (height, width), got {size}")
        self.size = (int(size[0]), int(size[1]))
        self.pixel_value = np.asarray(pixel_value, dtype=np.float64)
        self.seg_pad_value = seg_pad_value

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The padding of an image (H, W, C)."""
        height, width = image.shape[:2]
        right, bottom = max(self.size[1] - width, 0), max(self.size[0] - height, 0)
        if right == bottom == 0:  # as most crops are
            return NoOpTransform()
        return _PadChannels(
            0,
            0,
            right,
            bottom,
            width,
            height,
            pad_value=self.pixel_value,
            seg_pad_value=self.seg_pad_value,
        )


class _PadChannels(PadTransform):
    """fvcore's padding with a value for each channel."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        height, width = img.shape[0] + self.y1, img.shape[1] + self.x1
        padded = np.empty((height, width, img.shape[2]), img.dtype)
        is_whole = np.issubdtype(img.dtype, np.integer)
        padded[...] = np.round(self.pad_value) if is_whole else self.pad_value
        padded[: img.shape[0], : img.shape[1]] = img
        return padded


class _Resize(Transform):
    """Resizes as the official segmentation recipes do: by OpenCV, without antialiasing.

    It is bilinear for images, and takes the nearest pixel for label maps.
    """

    def __init__(self, height: int, width: int, new_height: int, new_width: int) -> None:
        super().__init__()
        self.scale = (new_width / width, new_height / height)
        self.size = (new_width, new_height)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        resized = cv2.resize(img, self.size, interpolation=cv2.INTER_LINEAR)
        # Of a single channel, OpenCV drops the axis.
        return resized.reshape(*resized.shape[:2], *img.shape[2:])

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
    # Halves are rounded up, and a side never becomes 0.
    sides = (max(int(side * scale + 0.5), 1) for side in (height, width))
    return _resize(image, *sides)


class ResizeToFit(T.Augmentation):
    """Resizes to the largest size that respects limits of both sides, keeping the aspect ratio.

    Args:
        short: limit of the shorter side in pixels.
        long: limit of the longer side in pixels; None for no limit, as in the official multi-scale
            test of BEiT.

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
    """`ResizeToFit` with both limits scaled by a random ratio.

    Args:
        short: shorter side in pixels at ratio 1.
        long: longer side in pixels at ratio 1.
        ratio_range: smallest and largest ratio; the ratio is drawn uniformly.

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
                "1 <= short <= long and 0 < smallest ratio <= largest ratio are needed, got "
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
    """Stretches each side to the next multiple of a divisor, so that no padding is needed.

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
    """Augmentations for multi-scale testing, with limits of the sides scaled by several ratios.

    Args:
        ratios: one for each scale.
        short: shorter side in pixels at ratio 1.
        long: longer side in pixels at ratio 1; None for no limit.
        least_short: minimum of the shorter side in pixels, at any ratio.
        divisor: each side is stretched to a multiple of it, unless it is None.

    Returns:
        For each ratio, the augmentations in their order.

    Raises:
        ValueError: a side is not positive, or `long` is shorter than `short`.
    """
    stretch = [] if divisor is None else [StretchToMultiple(divisor)]
    scales = []
    for ratio in ratios:
        longest = None if long is None else round(long * ratio)
        scales.append([ResizeToFit(max(round(short * ratio), least_short), longest), *stretch])
    return scales
