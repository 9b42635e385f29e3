"""Test-time augmentation of semantic segmenters: several scales, and mirrored."""

from collections.abc import Mapping, Sequence

import torch
from detectron2.data import transforms as T
from torch import Tensor, nn

from vitadapter.data.image_files import read_image
from vitadapter.data.transforms import augment

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


class SemanticSegmentorWithTTA(nn.Module):
    """Averages the class probabilities that a segmenter predicts for versions of an image.

    Args:
        model: the segmenter.
        resizes: one augmentation, or list of augmentations, for each scale; applied to the image
            as it is in its file.
        flip: whether every scale is predicted mirrored, too.
        image_format: "RGB" or "BGR", as the model expects.

    Raises:
        ValueError: there is no scale.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        resizes: Sequence[T.Augmentation | Sequence[T.Augmentation]],
        flip: bool = True,
        image_format: str = "RGB",
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
        self.image_format = image_format

    def forward(self, batched_inputs: Sequence[Mapping[str, object]]) -> list[dict[str, Tensor]]:
        """
        Args:
            batched_inputs: dicts with "file_name", or with "image" (3, H, W) where an image has no
                file, and optionally with "height" and "width" of the output.

        Returns:
            For each image a dict with "sem_seg", probabilities (K, height, width).
        """
        return [{"sem_seg": self._segment(record)} for record in batched_inputs]

    def _segment(self, record: Mapping[str, object]) -> Tensor:
        if "file_name" in record:
            image = read_image(str(record["file_name"]), self.image_format)
        else:
            image = record["image"].permute(1, 2, 0).numpy(force=True)
        height, width = image.shape[:2]
        size = {"height": record.get("height", height), "width": record.get("width", width)}
        total = None
        for resize in self.resizes:
            pixels = augment(resize, image).image
            for mirrored in (False, True) if self.flip else (False,):
                version = pixels.flip(-1) if mirrored else pixels
                (output,) = self.model([{"image": version, **size}])
                total = _add_probabilities(total, output.pop("sem_seg"), mirrored)
        return total.div_(len(self.resizes) * (2 if self.flip else 1))
