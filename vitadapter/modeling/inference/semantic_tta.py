"""Test-time augmentation of semantic segmenters: several scales, each also mirrored."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from torch import Tensor, nn

from vitadapter.modeling.image_record import ImageRecord, asked_size

__all__ = ["SemanticSegmentorWithTTA"]

_BAND = 64  # rows whose probabilities are in memory at once


def _add_probabilities(total: Tensor | None, logits: Tensor, mirrored: bool) -> Tensor:
    """Adds the softmax of logits (K, H, W), mirrored back, to a total in float32 at least.

    With many classes, the map of a large image has gigabytes, so no third one is made.
    """
    if total is None:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        total = torch.zeros(logits.shape, dtype=dtype, device=logits.device)
    for part, band in zip(total.split(_BAND, 1), logits.split(_BAND, 1), strict=True):
        probabilities = band.softmax(0, dtype=total.dtype)
        part += probabilities.flip(-1) if mirrored else probabilities
    return total


def _augmented(augmentation: T.Augmentation, image: np.ndarray) -> Tensor:
    """Returns an image (H, W, 3) after the augmentation, (3, h, w)."""
    aug_input = T.AugInput(image)
    augmentation(aug_input)
    return torch.as_tensor(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))


class SemanticSegmentorWithTTA(nn.Module):
    """Averages the class probabilities that a segmenter predicts for versions of an image.

    Args:
        model: the segmenter.
        resizes: one augmentation, or list of augmentations, for each scale. They are applied to the
            given image, which must be in full size (`dataloader.test.mapper.augmentations=[]`).
        flip: whether every scale is also predicted mirrored.

    Raises:
        ValueError: there is no scale.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        resizes: Sequence[T.Augmentation | Sequence[T.Augmentation]],
        flip: bool = True,
    ) -> None:
        super().__init__()
        if len(resizes) == 0:
            raise ValueError("test-time augmentation needs at least one scale, got none")
        self.model = model
        self.resizes = [
            T.AugmentationList(scale if isinstance(scale, Sequence) else [scale])
            for scale in resizes
        ]
        self.flip = flip

    def forward(self, batched_inputs: Sequence[ImageRecord]) -> list[dict[str, Tensor]]:
        """
        Args:
            batched_inputs: the images, uint8.

        Returns:
            For each image a dict with "sem_seg", probabilities (K, height, width).

        Raises:
            ValueError: an image of the data set has been resized by the mapper.
        """
        return [{"sem_seg": self._segment(record)} for record in batched_inputs]

    def _segment(self, record: ImageRecord) -> Tensor:
        image = record["image"].permute(1, 2, 0).numpy(force=True)
        height, width = image.shape[:2]
        asked_height, asked_width = asked_size(record)
        if "file_name" in record and (asked_height, asked_width) != (height, width):
            raise ValueError(
                "test-time augmentation makes its scales from the whole image, but "
                f"{record['file_name']} of {asked_width} x {asked_height} pixels was resized "
                f"to {width} x {height}: set dataloader.test.mapper.augmentations=[]"
            )
        total: Tensor | None = None
        for resize in self.resizes:
            pixels = _augmented(resize, image)
            for mirrored in (False, True) if self.flip else (False,):
                version = pixels.flip(-1) if mirrored else pixels
                single = ImageRecord(image=version, height=asked_height, width=asked_width)
                (output,) = self.model([single])
                total = _add_probabilities(total, output.pop("sem_seg"), mirrored)
        assert total is not None  # there is a scale
        return total.div_(len(self.resizes) * (2 if self.flip else 1))
