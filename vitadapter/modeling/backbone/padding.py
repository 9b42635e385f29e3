"""Padding of images to whole tokens."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["pad_images"]


def pad_images(images: Tensor, multiple: int) -> Tensor:
    """Pads images with zeros at the bottom and at the right, as Detectron2 pads batches.

    Args:
        images: (B, 3, H, W), normalised, so that 0 is the mean colour.
        multiple: what height and width become a multiple of, in pixels.

    Raises:
        ValueError: another shape, or no pixel.
    """
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(
            f"images must be (B, 3, H, W) with H and W at least 1, got {tuple(images.shape)}"
        )
    # Not "-size % multiple", which torch.compile cannot take for sizes that it does not know.
    bottom, right = ((multiple - size % multiple) % multiple for size in images.shape[2:])
    return F.pad(images, (0, right, 0, bottom))
