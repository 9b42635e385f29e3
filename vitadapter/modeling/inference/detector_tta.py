"""Multi-scale and flip test-time augmentation, of detectors with and without regions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from detectron2.data.transforms import HFlipTransform, TransformList
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from vitadapter.layers.nms import NMS, suppress_detections

from .same_size_batches import predict_by_size

__all__ = ["DetectorWithTTA", "ScaleRangeMapperTTA"]

Input = dict[str, object]


class ScaleRangeMapperTTA(DatasetMapperTTA):
    """Detectron2's mapper, of whose scales each one is trusted for objects of some sizes only.

    So the official release does: small versions of an image find its large objects, large ones its
    small objects.

    Args:
        min_sizes: shortest edge of each scale, in pixels.
        max_size: of the longest edge, in pixels.
        flip: whether each scale is also flipped.
        area_ranges: (above, up to) of each scale: square pixels, in the original image, of the
            boxes that are kept.

    Raises:
        ValueError: not one range for each scale, or one that holds nothing.
    """

    def __init__(
        self,
        min_sizes: Sequence[int],
        max_size: int,
        flip: bool,
        area_ranges: Sequence[tuple[float, float]],
    ) -> None:
        super().__init__(list(min_sizes), max_size, flip)
        ranges = [tuple(area_range) for area_range in area_ranges]
        if len(ranges) != len(min_sizes):
            raise ValueError(
                f"area_ranges must have one range for each of the {len(min_sizes)} min_sizes, "
                f"got {len(ranges)}"
            )
        for area_range in ranges:
            if len(area_range) != 2 or not area_range[0] < area_range[1]:
                raise ValueError(
                    f"area_ranges must be pairs (above, up to) with above < up to, got {area_range}"
                )
        self.area_ranges = ranges

    def __call__(self, dataset_dict: Input) -> list[Input]:
        """Versions of the input, each with its "area_range"."""
        versions = super().__call__(dataset_dict)
        per_scale = len(versions) // len(self.area_ranges)
        for index, version in enumerate(versions):
            version["area_range"] = self.area_ranges[index // per_scale]
        return versions


class DetectorWithTTA(nn.Module):
    """Runs a detector on several versions of each image and merges what it finds.

    Boxes of all versions are brought back to the image and go through one suppression. Masks of
    the boxes that stay are predicted in every version and averaged. Detectron2's
    `GeneralizedRCNNWithTTA` does so for its yacs configs; this takes any detector, any suppression
    and no config. The official release differs for two-stage detectors: it averages the boxes and
    scores of common proposals.

    Args:
        model: a detector, whose output for an image is {"instances": Instances}. Only of a
            `GeneralizedRCNN` masks are augmented.
        tta_mapper: input to its versions, with "transforms", as Detectron2's
            `DatasetMapperTTA`: resized and flipped horizontally. A version may have an
            "area_range", as of `ScaleRangeMapperTTA`.
        nms: suppression of the boxes of all versions.
        max_detections_per_image: at most so many detections.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        tta_mapper: Callable[[Input], list[Input]],
        nms: NMS,
        max_detections_per_image: int = 100,
    ) -> None:
        super().__init__()
        self.model = model
        self.tta_mapper = tta_mapper
        self.nms = nms
        self.max_detections_per_image = max_detections_per_image

    def forward(self, batched_inputs: Sequence[Input]) -> list[dict[str, Instances]]:
        """As of the detector in evaluation mode; image by image."""
        return [{"instances": self._detect(single)} for single in batched_inputs]

    def _detect(self, single: Input) -> Instances:
        height, width = single["image"].shape[-2:]
        image_size = (single.get("height", height), single.get("width", width))
        single = {**single, "height": image_size[0], "width": image_size[1]}
        versions = self.tta_mapper(single)
        transforms = [version.pop("transforms") for version in versions]
        ranges = [version.pop("area_range", None) for version in versions]
        with _masks_off(self.model):
            found = self._predict(versions)
        found = [_in_image(*pair) for pair in zip(found, transforms, strict=True)]
        found = [_within(*pair) for pair in zip(found, ranges, strict=True)]
        merged = self._merge(found, image_size)
        if not _has_masks(self.model):
            return merged
        merged.pred_masks = self._masks(merged, versions, transforms)
        return detector_postprocess(merged, *image_size)

    def _predict(self, versions: list[Input]) -> list[Instances]:
        """Detections in the pixels of each version."""
        as_they_are = []
        for version in versions:
            height, width = version["image"].shape[-2:]
            as_they_are.append({**version, "height": height, "width": width})
        outputs = predict_by_size(self.model, as_they_are, self.model.backbone.size_divisibility)
        return [output["instances"] for output in outputs]

    def _merge(self, found: Sequence[Instances], image_size: tuple[int, int]) -> Instances:
        """One suppression of all detections, which are in the pixels of the image."""
        return suppress_detections(
            Boxes.cat([instances.pred_boxes for instances in found]),
            torch.cat([instances.scores for instances in found]),
            torch.cat([instances.pred_classes for instances in found]),
            image_size,
            self.nms,
            self.max_detections_per_image,
        )

    def _masks(
        self, merged: Instances, versions: list[Input], transforms: list[TransformList]
    ) -> Tensor:
        """Probabilities (n, 1, h, w) in the boxes, averaged over the versions."""
        if len(merged) == 0:
            return merged.scores.new_zeros(0, 1, 1, 1)
        given = [
            {**version, "given": _in_version(merged, transform, version["image"].shape[-2:])}
            for version, transform in zip(versions, transforms, strict=True)
        ]
        outputs = predict_by_size(
            lambda batch: self.model.inference(
                batch, [single["given"] for single in batch], do_postprocess=False
            ),
            given,
            self.model.backbone.size_divisibility,
        )
        masks = [
            output.pred_masks.flip(3) if _flips(transform) else output.pred_masks
            for output, transform in zip(outputs, transforms, strict=True)
        ]
        return torch.stack(masks).mean(0)


def _has_masks(model: nn.Module) -> bool:
    return isinstance(model, GeneralizedRCNN) and model.roi_heads.mask_on


@contextmanager
def _masks_off(model: nn.Module) -> Iterator[None]:
    """Masks of boxes that may not stay are not worth their time."""
    if not _has_masks(model):
        yield
        return
    model.roi_heads.mask_on = False
    try:
        yield
    finally:
        model.roi_heads.mask_on = True


def _flips(transform: TransformList) -> bool:
    return sum(isinstance(step, HFlipTransform) for step in transform.transforms) % 2 == 1


def _transformed(boxes: Boxes, transform: TransformList) -> Boxes:
    transformed = torch.from_numpy(transform.apply_box(boxes.tensor.double().cpu().numpy()))
    return Boxes(transformed.to(boxes.tensor))


def _in_image(found: Instances, transform: TransformList) -> Instances:
    """Detections in a version, with their boxes in the pixels of the image."""
    found.pred_boxes = _transformed(found.pred_boxes, transform.inverse())
    return found


def _within(found: Instances, area_range: tuple[float, float] | None) -> Instances:
    """Detections whose boxes are of (above, up to) square pixels; all without a range."""
    if area_range is None:
        return found
    above, up_to = area_range
    areas = found.pred_boxes.area()
    return found[(areas > above) & (areas <= up_to)]


def _in_version(merged: Instances, transform: TransformList, size: tuple[int, int]) -> Instances:
    """Boxes and classes in the pixels of a version of (height, width)."""
    return Instances(
        tuple(size),
        pred_boxes=_transformed(merged.pred_boxes, transform),
        pred_classes=merged.pred_classes,
        scores=merged.scores,
    )
