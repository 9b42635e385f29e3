"""Inference on overlapping windows of the size that a segmenter was trained with."""

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

__all__ = ["SlidingWindow", "window_starts"]


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """First pixel of each window along a side: multiples of the stride, the last shifted back.

    Args:
        length: of the side in pixels.
        crop: of a window.
        stride: between windows.

    Returns:
        Starts, of which none reaches beyond the side; [0] for a side within one window.
    """
    last = max(length - crop, 0)
    return [*range(0, last, stride), last]


def _pad(images: Tensor, least: tuple[int, int], value: Tensor | float) -> Tensor:
    """Images (B, 3, H, W) padded at the bottom and at the right to at least (height, width)."""
    height, width = images.shape[-2:]
    if height >= least[0] and width >= least[1]:
        return images
    padded = images.new_empty(*images.shape[:2], max(height, least[0]), max(width, least[1]))
    padded[:] = value
    padded[..., :height, :width] = images
    return padded


class SlidingWindow:
    """Predicts window by window and averages the logits where windows overlap.

    The sum is the only map of the whole image that is held, beside one window's.

    Args:
        crop_size: (height, width) of a window in pixels.
        stride: (vertical, horizontal) distance of windows in pixels.
        pad_to_crop: whether an image smaller than a window is padded to one; the padding is cut
            off the result. Else it is predicted as it is.
        windows_per_batch: windows that are predicted at once.

    Raises:
        ValueError: a size that is not positive, or windows that would leave gaps.
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
            pad_value: of padded pixels, (3, 1, 1) or the same for all channels.

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
        total = None
        for first in range(0, len(corners), self.windows_per_batch):
            batch = corners[first : first + self.windows_per_batch]
            crops = [images[..., y : y + window[0], x : x + window[1]] for y, x in batch]
            logits = predict(torch.cat(crops))
            if total is None:
                # In half precision averages of neighbouring classes would tie.
                dtype = torch.promote_types(logits.dtype, torch.float32)
                total = logits.new_zeros(len(images), logits.shape[1], *size, dtype=dtype)
            for (y, x), part in zip(batch, logits.split(len(images)), strict=True):
                total[..., y : y + window[0], x : x + window[1]] += part
            del logits, part  # else they would be held while the next batch is predicted
        # How many windows cover a pixel is a product, since windows form a grid.
        for axis in (0, 1):
            counts = total.new_zeros(size[axis])
            for start in starts[axis]:
                counts[start : start + window[axis]] += 1
            total /= counts[:, None] if axis == 0 else counts
        return total[..., :height, :width]
