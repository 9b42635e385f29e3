"""Multi-scale and flip test-time augmentation of all detectors."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from detectron2.data.transforms import HFlipTransform, TransformList
from detectron2.modeling import Backbone
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from vitadapter.layers.nms import NMS, suppress_detections
from vitadapter.modeling.image_record import ImageRecord, asked_size

from .same_size_batches import predict_by_size

__all__ = ["DetectorWithTTA", "ScaleRangeMapperTTA"]


class Version(ImageRecord, total=False):
    """An augmented image, with the boxes whose masks are to be predicted."""

    transforms: TransformList
    area_range: tuple[float, float] | None
    boxes: Instances


class Detector(Protocol):
    """A detector of Detectron2 or of this package."""

    backbone: Backbone

    def __call__(self, batched_inputs: list[Version]) -> list[dict[str, Instances]]: ...


class ScaleRangeMapperTTA(DatasetMapperTTA):
    """Detectron2's mapper with a range of object sizes for each scale.

    As in the official release, large objects are detected in small versions of an image, and small
    objects in large versions.

    Args:
        min_sizes: shortest edge of each scale, in pixels.
        max_size: maximum length of the longest edge, in pixels.
        flip: whether each scale is also flipped.
        area_ranges: for each scale (above, up to), the area in square pixels of the original image
            of the boxes that are kept.

    Raises:
        ValueError: there is not one range for each scale, or a range is empty.
    """

    def __init__(
        self,
        min_sizes: Sequence[int],
        max_size: int,
        flip: bool,
        area_ranges: Sequence[tuple[float, float]],
    ) -> None:
        super().__init__(list(min_sizes), max_size, flip)
        if len(area_ranges) != len(min_sizes):
            raise ValueError(
                f"area_ranges must have one range for each of the {len(min_sizes)} min_sizes, "
                f"got {len(area_ranges)}"
            )
        for area_range in area_ranges:
            if len(area_range) != 2 or not area_range[0] < area_range[1]:
                raise ValueError(
                    "area_ranges must be pairs (above, up to) with above < up to, "
                    f"got {tuple(area_range)}"
                )
        self.area_ranges = [(above, up_to) for above, up_to in area_ranges]

    def __call__(self, dataset_dict: ImageRecord) -> list[Version]:
        """Returns the versions of an image, each with its "area_range"."""
        versions = super().__call__(dataset_dict)
        per_scale = len(versions) // len(self.area_ranges)
        for index, version in enumerate(versions):
            version["area_range"] = self.area_ranges[index // per_scale]
        return versions


class DetectorWithTTA(nn.Module):
    """Runs a detector on several versions of each image and merges what it finds.

    Boxes of all versions are transformed back to the image, and overlapping ones are suppressed.
    Masks of the remaining boxes are predicted in every version and averaged. Detectron2's
    `GeneralizedRCNNWithTTA` does the same but needs a yacs config; this works with any detector and
    any suppression. For two-stage detectors, the official release does something else: it averages
    boxes and scores of common proposals.

    Args:
        model: a detector, whose output for an image is {"instances": Instances}. Masks are
            augmented only if it is a `GeneralizedRCNN`.
        tta_mapper: maps an image to its versions, which are resized and flipped horizontally: a
            `ScaleRangeMapperTTA` or Detectron2's `DatasetMapperTTA`, which gives no "area_range".
        nms: how overlapping boxes of all versions are suppressed.
        max_detections_per_image: maximum number of detections.
    """

    def __init__(
        self,
        model: Detector,
        *,
        tta_mapper: Callable[[ImageRecord], list[Version]],
        nms: NMS,
        max_detections_per_image: int = 100,
    ) -> None:
        super().__init__()
        self.model = model
        self.tta_mapper = tta_mapper
        self.nms = nms
        self.max_detections_per_image = max_detections_per_image

    def forward(self, batched_inputs: Sequence[ImageRecord]) -> list[dict[str, Instances]]:
        """Returns what the detector returns in evaluation mode, one image after the other."""
        return [{"instances": self._detect(single)} for single in batched_inputs]

    def _detect(self, record: ImageRecord) -> Instances:
        height, width = asked_size(record)
        versions = self.tta_mapper({**record, "height": height, "width": width})
        transforms = [version.pop("transforms") for version in versions]
        ranges = [version.pop("area_range", None) for version in versions]
        rcnn = _mask_rcnn(self.model)
        with nullcontext() if rcnn is None else _masks_off(rcnn):
            found = self._predict(versions)
        found = [_in_image(*pair) for pair in zip(found, transforms, strict=True)]
        found = [_within(*pair) for pair in zip(found, ranges, strict=True)]
        merged = self._merge(found, (height, width))
        if rcnn is None:
            return merged
        merged.pred_masks = _masks(rcnn, merged, versions, transforms)
        return detector_postprocess(merged, height, width)

    def _predict(self, versions: list[Version]) -> list[Instances]:
        """Returns the detections in the pixels of each version."""
        unscaled: list[Version] = []
        for version in versions:
            height, width = version["image"].shape[-2:]
            unscaled.append({**version, "height": height, "width": width})
        outputs = predict_by_size(self.model, unscaled, self.model.backbone.size_divisibility)
        return [output["instances"] for output in outputs]

    def _merge(self, found: Sequence[Instances], image_size: tuple[int, int]) -> Instances:
        """Joins all detections, which are in the pixels of the image, and suppresses overlaps."""
        return suppress_detections(
            Boxes.cat([instances.pred_boxes for instances in found]),
            torch.cat([instances.scores for instances in found]),
            torch.cat([instances.pred_classes for instances in found]),
            image_size,
            self.nms,
            self.max_detections_per_image,
        )


def _mask_rcnn(model: Detector) -> GeneralizedRCNN | None:
    """Returns a detector whose masks can be augmented, or None for any other."""
    return model if isinstance(model, GeneralizedRCNN) and model.roi_heads.mask_on else None


@contextmanager
def _masks_off(rcnn: GeneralizedRCNN) -> Iterator[None]:
    """Inside this context, no masks are predicted: most of the boxes will be suppressed."""
    rcnn.roi_heads.mask_on = False
    try:
        yield
    finally:
        rcnn.roi_heads.mask_on = True


def _masks(
    rcnn: GeneralizedRCNN,
    merged: Instances,
    versions: list[Version],
    transforms: list[TransformList],
) -> Tensor:
    """Returns probabilities (n, 1, h, w) in the boxes, averaged over the versions."""
    if len(merged) == 0:
        return merged.scores.new_zeros(0, 1, 1, 1)
    with_boxes: list[Version] = [
        {**version, "boxes": _in_version(merged, transform, version["image"].shape[-2:])}
        for version, transform in zip(versions, transforms, strict=True)
    ]
    outputs = predict_by_size(
        lambda batch: rcnn.inference(
            batch, [version["boxes"] for version in batch], do_postprocess=False
        ),
        with_boxes,
        rcnn.backbone.size_divisibility,
    )
    masks = [
        output.pred_masks.flip(3) if _flips(transform) else output.pred_masks
        for output, transform in zip(outputs, transforms, strict=True)
    ]
    return torch.stack(masks).mean(0)


def _flips(transform: TransformList) -> bool:
    return sum(isinstance(step, HFlipTransform) for step in transform.transforms) % 2 == 1


def _transformed(boxes: Boxes, transform: TransformList) -> Boxes:
    transformed = torch.from_numpy(transform.apply_box(boxes.tensor.double().cpu().numpy()))
    return Boxes(transformed.to(boxes.tensor))


def _in_image(found: Instances, transform: TransformList) -> Instances:
    """Transforms the boxes of detections in a version to the pixels of the image."""
    found.pred_boxes = _transformed(found.pred_boxes, transform.inverse())
    return found


def _within(found: Instances, area_range: tuple[float, float] | None) -> Instances:
    """Returns the detections whose area is in (above, up to], or all without a range."""
    if area_range is None:
        return found
    above, up_to = area_range
    areas = found.pred_boxes.area()
    return found[(areas > above) & (areas <= up_to)]


def _in_version(merged: Instances, transform: TransformList, size: Sequence[int]) -> Instances:
    """Returns boxes and classes in the pixels of a version of this (height, width)."""
    return Instances(
        tuple(size),
        pred_boxes=_transformed(merged.pred_boxes, transform),
        pred_classes=merged.pred_classes,
        scores=merged.scores,
    )
