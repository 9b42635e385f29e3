"""Test-time augmentation of semantic segmenters: several scales, and mirrored."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from torch import Tensor, nn

__all__ = ["SemanticSegmentorWithTTA"]

_BAND = 64  # rows whose probabilities are held at once


def _add_probabilities(total: Tensor | None, logits: Tensor, mirrored: bool) -> Tensor:
    """Adds the softmax of logits (K, H, W), mirrored back, to a total in float32 at least.

    At many classes each map of a large image is gigabytes: beside these two none is made.
    """
    if total is None:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        total = torch.zeros(logits.shape, dtype=dtype, device=logits.device)
    for part, band in zip(total.split(_BAND, 1), logits.split(_BAND, 1), strict=True):
        probabilities = band.softmax(0, dtype=total.dtype)
        part += probabilities.flip(-1) if mirrored else probabilities
    return total


def _augmented(augmentation: T.Augmentation, image: np.ndarray) -> Tensor:
    """An image (H, W, 3) after the augmentation, (3, h, w)."""
    aug_input = T.AugInput(image)
    augmentation(aug_input)
    return torch.as_tensor(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))


class SemanticSegmentorWithTTA(nn.Module):
    """Averages the class probabilities that a segmenter predicts for versions of an image.

    Args:
        model: the segmenter.
        resizes: one augmentation, or list of augmentations, for each scale; applied to the given
            image, which is to be the whole one (`dataloader.test.mapper.augmentations=[]`).
        flip: whether every scale is predicted mirrored, too.

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

    def forward(self, batched_inputs: Sequence[Mapping[str, object]]) -> list[dict[str, Tensor]]:
        """
        Args:
            batched_inputs: dicts with "image" (3, H, W), uint8, and optionally with "height" and
                "width" of the output.

        Returns:
            For each image a dict with "sem_seg", probabilities (K, height, width).

        Raises:
            ValueError: the mapper has resized an image of the data set.
        """
        return [{"sem_seg": self._segment(record)} for record in batched_inputs]

    def _segment(self, record: Mapping[str, object]) -> Tensor:
        image = record["image"].permute(1, 2, 0).numpy(force=True)
        height, width = image.shape[:2]
        size = {"height": record.get("height", height), "width": record.get("width", width)}
        if "file_name" in record and (size["height"], size["width"]) != (height, width):
            raise ValueError(
                "test-time augmentation makes its scales from the whole image, but "
                f"{record['file_name']} of {size['width']} x {size['height']} pixels was resized "
                f"to {width} x {height}: set dataloader.test.mapper.augmentations=[]"
            )
        total = None
        for resize in self.resizes:
            pixels = _augmented(resize, image)
            for mirrored in (False, True) if self.flip else (False,):
                version = pixels.flip(-1) if mirrored else pixels
                (output,) = self.model([{"image": version, **size}])
                total = _add_probabilities(total, output.pop("sem_seg"), mirrored)
        return total.div_(len(self.resizes) * (2 if self.flip else 1))
