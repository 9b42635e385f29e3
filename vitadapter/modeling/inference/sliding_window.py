"""Inference on overlapping windows, which have the size that a segmenter was trained with."""

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

__all__ = ["SlidingWindow", "window_starts"]


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Returns the first pixel of each window along a side of an image.

    These are multiples of the stride, except that the last window ends with the side.

    Args:
        length: length of the side in pixels.
        crop: length of a window.
        stride: distance of windows.

    Returns:
        The first pixels; [0] if the side fits into one window.
    """
    last = max(length - crop, 0)
    return [*range(0, last, stride), last]


def _pad(images: Tensor, least: tuple[int, int], value: Tensor | float) -> Tensor:
    """Pads images (B, 3, H, W) at the bottom and right to at least (height, width)."""
    height, width = images.shape[-2:]
    if height >= least[0] and width >= least[1]:
        return images
    padded = images.new_empty(*images.shape[:2], max(height, least[0]), max(width, least[1]))
    padded[:] = value
    padded[..., :height, :width] = images
    return padded


class SlidingWindow:
    """Predicts window by window and averages the logits where windows overlap.

    Only the sum over the whole image and the logits of one batch of windows are kept in memory.

    Args:
        crop_size: (height, width) of a window in pixels.
        stride: (vertical, horizontal) distance of windows in pixels.
        pad_to_crop: whether an image that is smaller than a window is padded to its size, and the
            result cropped. Otherwise, it is predicted as it is.
        windows_per_batch: number of windows that are predicted at once.

    Raises:
        ValueError: a size is not positive, or the windows would leave gaps.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        stride: Sequence[int],
        *,
        pad_to_crop: bool = False,
        windows_per_batch: int = 1,
    ) -> None:
        pairs = len(crop_size) == len(stride) == 2
        gaps = not pairs or any(not 0 < s <= c for s, c in zip(stride, crop_size, strict=True))
        if gaps or windows_per_batch < 1:
            raise ValueError(
                "0 < stride <= crop_size is needed for height and width, and at least one window "
                f"per batch, got {tuple(stride)}, {tuple(crop_size)}, {windows_per_batch}"
            )
        self.crop_size = (int(crop_size[0]), int(crop_size[1]))
        self.stride = (int(stride[0]), int(stride[1]))
        self.pad_to_crop = pad_to_crop
        self.windows_per_batch = windows_per_batch

    def __call__(
        self,
        predict: Callable[[Tensor], Tensor],
        images: Tensor,
        pad_value: Tensor | float = 0.0,
    ) -> Tensor:
        """
        Args:
            predict: maps images (B, 3, h, w) to logits (B, K, h, w).
            images: normalised images (B, 3, H, W).
            pad_value: value of padding pixels, (3, 1, 1) or the same for all channels.

        Returns:
            Logits (B, K, H, W), in float32 at least.
        """
        height, width = images.shape[-2:]
        if self.pad_to_crop:
            images = _pad(images, self.crop_size, pad_value)
        size = images.shape[-2:]
        window = [min(side, crop) for side, crop in zip(size, self.crop_size, strict=True)]
        starts = [
            window_starts(side, crop, step)
            for side, crop, step in zip(size, self.crop_size, self.stride, strict=True)
        ]
        corners = list(product(*starts))
        total: Tensor | None = None
        for first in range(0, len(corners), self.windows_per_batch):
            batch = corners[first : first + self.windows_per_batch]
            crops = [images[..., y : y + window[0], x : x + window[1]] for y, x in batch]
            logits = predict(torch.cat(crops))
            if total is None:
                # In half precision, averages of similar classes would be equal.
                dtype = torch.promote_types(logits.dtype, torch.float32)
                total = logits.new_zeros(len(images), logits.shape[1], *size, dtype=dtype)
            for (y, x), part in zip(batch, logits.split(len(images)), strict=True):
                total[..., y : y + window[0], x : x + window[1]] += part
            del logits, part  # otherwise they would be kept while the next batch is predicted
        assert total is not None  # there is a window
        # Windows form a grid, so the number of windows that cover a pixel is a product.
        for axis in (0, 1):
            counts = total.new_zeros(size[axis])
            for start in starts[axis]:
                counts[start : start + window[axis]] += 1
            total /= counts[:, None] if axis == 0 else counts
        return total[..., :height, :width]
