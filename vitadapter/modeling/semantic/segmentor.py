"""Detectron2's semantic segmenter with the official release's inference."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch.nn.functional as F
from detectron2.modeling import Backbone
from detectron2.modeling import SemanticSegmentor as _SemanticSegmentor
from detectron2.structures import ImageList
from torch import Tensor, nn

from vitadapter.modeling.image_record import ImageRecord, asked_size

__all__ = ["SemanticSegmentor", "WindowedInference", "check_size", "labels_of", "name_of"]

WindowedInference = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


class SemanticSegmentor(_SemanticSegmentor):
    """A backbone and a head, which predict each image separately, whole or in sliding windows.

    Unlike in Detectron2, a prediction does not depend on the other images of its batch, because
    images are not padded to the size of the largest one.

    Args:
        backbone: maps images to features.
        sem_seg_head: maps features to logits, or in training to losses; see `PixelHead`. If it has
            `num_classes` and `ignore_value`, as our heads do, labels are checked.
        pixel_mean, pixel_std: mean and standard deviation of the images' channels.
        inference: such as `SlidingWindow`; called with a function from images to logits, with
            normalised images (1, 3, H, W), and with the value (3, 1, 1) of a black pixel in them.
            None predicts whole images.
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
        self, batched_inputs: Sequence[ImageRecord]
    ) -> dict[str, Tensor] | Sequence[Mapping[str, object]]:
        """
        Args:
            batched_inputs: the images, in training with "sem_seg".

        Returns:
            In training, the losses; otherwise for each image a dict with "sem_seg", logits (K,
            height, width).

        Raises:
            ValueError: in training, an image has no labels, or labels of the wrong size or outside
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

    def _segment(self, record: ImageRecord) -> Tensor:
        images = self._normalised(record)[None]
        logits = self._logits(images) if self.inference is None else self._windowed(images)
        return self._resized(logits, record)

    def _windowed(self, images: Tensor) -> Tensor:
        """Maps images (1, 3, H, W) to logits (1, K, H, W) by `inference`."""
        assert self.inference is not None
        # As in the official code, padding is black before images are normalised.
        return self.inference(self._logits, images, -self.pixel_mean / self.pixel_std)

    def _normalised(self, record: ImageRecord) -> Tensor:
        """Returns the image (3, H, W) as the backbone needs it."""
        return (record["image"].to(self.device) - self.pixel_mean) / self.pixel_std

    def _padded(self, images: Iterable[Tensor]) -> Tensor:
        """Pads normalised images (3, h, w) to a batch (B, 3, H, W) that the backbone accepts."""
        return ImageList.from_tensors(
            list(images),
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        ).tensor

    def _resized(self, logits: Tensor, record: ImageRecord) -> Tensor:
        """Resizes logits (1, K, H, W) at the image's size to (K, height, width) of the output."""
        size = asked_size(record)
        if size == logits.shape[-2:]:
            # With many classes, the map of a large image has gigabytes, so no needless one is made.
            return logits[0]
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]

    def _logits(self, images: Tensor) -> Tensor:
        """Maps images (B, 3, h, w) of any size to logits (B, K, h, w)."""
        logits, _ = self.sem_seg_head(self.backbone(self._padded(images)))
        return logits[..., : images.shape[-2], : images.shape[-1]]


def name_of(record: ImageRecord) -> str:
    """Returns the name of the image's file, for messages."""
    return str(record.get("file_name", "an image"))


def labels_of(record: ImageRecord) -> Tensor:
    """Returns the label map (H, W) of a training image, or raises ValueError if there is none."""
    if "sem_seg" not in record:
        raise ValueError(f'training needs a label map "sem_seg", which {name_of(record)} lacks')
    return record["sem_seg"]


def check_size(record: ImageRecord, truth: Tensor) -> None:
    """Raises ValueError unless the ground truth (..., H, W) has the size of the image."""
    sizes = tuple(record["image"].shape[1:]), tuple(truth.shape[-2:])
    if sizes[0] != sizes[1]:
        raise ValueError(
            "image and ground truth must have the same (height, width), "
            f"got {sizes} of {name_of(record)}"
        )


def _check_labels(record: ImageRecord, labels: Tensor, num_classes: int, ignore_value: int) -> None:
    # The cross entropy would not name the image and, on a GPU, would end the process.
    trained = labels[labels != ignore_value]
    if len(trained) > 0 and not 0 <= trained.min() <= trained.max() < num_classes:
        raise ValueError(
            f"labels must lie in [0, {num_classes}) or be {ignore_value} (ignored), got "
            f"{trained.min()} to {trained.max()} in {name_of(record)}"
        )
