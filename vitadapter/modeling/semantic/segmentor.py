"""Detectron2's semantic segmenter with the official release's inference."""

from collections.abc import Callable, Mapping, Sequence

import torch.nn.functional as F
from detectron2.modeling import Backbone
from detectron2.modeling import SemanticSegmentor as _SemanticSegmentor
from detectron2.structures import ImageList
from torch import Tensor, nn

__all__ = ["SemanticSegmentor", "WindowedInference", "check_size", "labels_of", "name_of"]

WindowedInference = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


class SemanticSegmentor(_SemanticSegmentor):
    """Backbone and head; predicts each image by itself, whole or in sliding windows.

    Unlike Detectron2's, a prediction does not depend on the other images of its batch: images are
    not padded to the size of the largest one.

    Args:
        backbone: maps images to features.
        sem_seg_head: maps features to logits, or in training to losses; see `PixelHead`.
            Where it has `num_classes` and `ignore_value`, as ours do, labels are checked.
        pixel_mean: of the images' channels.
        pixel_std: of the images' channels.
        inference: called with a function from images to logits, with images (1, 3, H, W) and with
            what a black pixel (3, 1, 1) is in them, such as `SlidingWindow`; None predicts whole
            images.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        inference: WindowedInference | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            sem_seg_head=sem_seg_head,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
        self.inference = inference

    def forward(
        self, batched_inputs: Sequence[Mapping[str, object]]
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """
        Args:
            batched_inputs: dicts with "image" (3, H, W), in training with "sem_seg" (H, W), in
                inference optionally with "height" and "width" of the output in pixels.

        Returns:
            In training the losses; else a dict with "sem_seg", logits (K, height, width), for each
            image.

        Raises:
            ValueError: an image has no labels in training, or labels of another size or outside
                the head's classes.
        """
        if self.training:
            head = self.sem_seg_head
            for record in batched_inputs:
                labels = labels_of(record)
                check_size(record, labels)
                if hasattr(head, "num_classes"):  # not Detectron2's SemSegFPNHead
                    _check_labels(record, labels, head.num_classes, head.ignore_value)
            return super().forward(batched_inputs)
        return [{"sem_seg": self._segment(x)} for x in batched_inputs]

    def _segment(self, record: Mapping[str, object]) -> Tensor:
        images = self._normalised(record)[None]
        logits = self._logits(images) if self.inference is None else self._windowed(images)
        return self._resized(logits, record)

    def _windowed(self, images: Tensor) -> Tensor:
        """Images (1, 3, H, W) to logits (1, K, H, W) by `inference`."""
        # As officially, images are padded before they are normalised.
        return self.inference(self._logits, images, -self.pixel_mean / self.pixel_std)

    def _normalised(self, record: Mapping[str, object]) -> Tensor:
        """The image (3, H, W) as the backbone wants it."""
        return (record["image"].to(self.device) - self.pixel_mean) / self.pixel_std

    def _padded(self, images: Sequence[Tensor]) -> Tensor:
        """Normalised images (3, h, w) as one batch (B, 3, H, W) of a size the backbone takes."""
        return ImageList.from_tensors(
            list(images),
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        ).tensor

    def _output_size(self, record: Mapping[str, object]) -> tuple[int, int]:
        """(height, width) that is asked for; the image's if none is."""
        height, width = record["image"].shape[1:]
        return record.get("height", height), record.get("width", width)

    def _resized(self, logits: Tensor, record: Mapping[str, object]) -> Tensor:
        """Logits (1, K, H, W) at the image's size to (K, height, width) at the output's."""
        size = self._output_size(record)
        if size == logits.shape[-2:]:
            # At many classes a map of a large image is gigabytes: none is made in vain.
            return logits[0]
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]

    def _logits(self, images: Tensor) -> Tensor:
        """Images (B, 3, h, w) of any size to logits (B, K, h, w)."""
        logits, _ = self.sem_seg_head(self.backbone(self._padded(images)))
        return logits[..., : images.shape[-2], : images.shape[-1]]


def name_of(record: Mapping[str, object]) -> str:
    """The image's file, for messages."""
    return str(record.get("file_name", "an image"))


def labels_of(record: Mapping[str, object]) -> Tensor:
    """The label map (H, W) of a training image; a ValueError where there is none."""
    if "sem_seg" not in record:
        raise ValueError(f'training needs a label map "sem_seg", which {name_of(record)} lacks')
    return record["sem_seg"]


def check_size(record: Mapping[str, object], truth: Tensor) -> None:
    """Raises ValueError unless truth (..., H, W) is of the image's size."""
    sizes = tuple(record["image"].shape[1:]), tuple(truth.shape[-2:])
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"image and truth must have the same (height, width), got {sizes} of {name_of(record)}"
        )


def _check_labels(
    record: Mapping[str, object], labels: Tensor, num_classes: int, ignore_value: int
) -> None:
    # The cross entropy would name no image, and on a GPU end the process.
    trained = labels[labels != ignore_value]
    if len(trained) > 0 and not 0 <= trained.min() <= trained.max() < num_classes:
        raise ValueError(
            f"labels must lie in [0, {num_classes}) or be {ignore_value} (ignored), got "
            f"{trained.min()} to {trained.max()} in {name_of(record)}"
        )
