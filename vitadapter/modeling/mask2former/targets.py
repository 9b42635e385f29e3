"""The ground truth of an image as a class and a mask for each segment."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor

from vitadapter.modeling.image_record import ImageRecord
from vitadapter.modeling.semantic.segmentor import labels_of, name_of

__all__ = ["MaskTargets", "SegmentTargets", "SemanticTargets", "pad_masks"]


class MaskTargets(NamedTuple):
    """Segments of one image.

    Attributes:
        classes: (N,), int64; N may be 0.
        masks: (N, H, W); bool, until the losses need numbers.
    """

    classes: Tensor
    masks: Tensor


def pad_masks(targets: MaskTargets, size: tuple[int, int]) -> MaskTargets:
    """Pads masks with zeros at the bottom and at the right to (height, width)."""
    height, width = targets.masks.shape[-2:]
    padding = (0, size[1] - width, 0, size[0] - height)
    return MaskTargets(targets.classes, F.pad(targets.masks, padding))


def _drop_empty(classes: Tensor, masks: Tensor) -> MaskTargets:
    kept = masks.flatten(1).any(1)
    return MaskTargets(classes[kept], masks[kept])


class SemanticTargets:
    """One segment for each class in a label map.

    A map in which all labels are ignored has no segment; from it, the queries learn "no object".

    Args:
        ignore_value: label of pixels that belong to no segment.
    """

    def __init__(self, ignore_value: int = 255) -> None:
        self.ignore_value = ignore_value

    def __call__(self, record: ImageRecord, device: torch.device) -> MaskTargets:
        """
        Args:
            record: an image with "sem_seg".
            device: device of the result.

        Raises:
            ValueError: there is no label map.
        """
        labels = labels_of(record).to(device).long()
        classes = labels.unique()
        classes = classes[classes != self.ignore_value]
        return MaskTargets(classes, labels == classes[:, None, None])


class SegmentTargets:
    """The "instances" of a record: objects, and for panoptic segmentation also stuff.

    Segments without a pixel, which can result from cropping, are dropped.
    """

    def __call__(self, record: ImageRecord, device: torch.device) -> MaskTargets:
        """
        Args:
            record: an image with "instances", which have `gt_classes` and `gt_masks` (bit masks,
                polygons or a tensor (N, H, W)).
            device: device of the result.

        Raises:
            ValueError: there are no instances, or they have no masks.
            TypeError: the masks are of another type.
        """
        instances = record.get("instances")
        if not isinstance(instances, Instances) or not instances.has("gt_classes"):
            raise ValueError(
                f'training needs "instances" with gt_classes, which {name_of(record)} lacks'
            )
        if not instances.has("gt_masks"):
            if len(instances) > 0:
                raise ValueError(f'the "instances" of {name_of(record)} have no gt_masks')
            # Detectron2's mapper omits masks if there is no instance.
            masks = torch.zeros(0, *instances.image_size, dtype=torch.bool)
        else:
            masks = _bits(instances.gt_masks, instances.image_size)
        return _drop_empty(instances.gt_classes.to(device), masks.to(device))


def _bits(masks: BitMasks | PolygonMasks | Tensor, size: tuple[int, int]) -> Tensor:
    """Converts masks of any of these types to (N, H, W), bool."""
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *size)
    if isinstance(masks, BitMasks):
        masks = masks.tensor
    if not isinstance(masks, Tensor):
        raise TypeError(f"gt_masks must be BitMasks, PolygonMasks or a tensor, got {type(masks)}")
    return masks.bool()
