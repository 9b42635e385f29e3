"""Maps images and annotations to the input of a detector, and handles unusable images."""

import copy
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import numpy as np
from detectron2.data import build_detection_train_loader, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Instances
from torch import Tensor
from torch.utils.data import Sampler, get_worker_info

from vitadapter.data.dataset_source import Annotation, Record
from vitadapter.data.freed_memory import keep_freed_memory
from vitadapter.data.image_files import (
    check_map_size,
    read_image,
    read_numbers,
    read_record_image,
    reason,
)
from vitadapter.data.transforms import augment, refuse_colour_augmentations

__all__ = [
    "DatasetMapper",
    "RecordMapper",
    "Sample",
    "build_train_loader",
    "read_image",
    "read_semantic_map",
]

logger = logging.getLogger(__name__)

InstanceAugmentation = Callable[
    [np.ndarray, Sequence[Annotation]], tuple[np.ndarray, list[Annotation]]
]

# The fields that a detector is trained on. (To flip keypoints, their partners must be known.)
_FIELDS = ("bbox", "bbox_mode", "category_id", "segmentation")


class Sample(Record, total=False):
    """The input of a model: a data set dict with its augmented image and targets."""

    image: Tensor
    sem_seg: Tensor
    instances: Instances


class RecordMapper(ABC):
    """Maps a data set dict to the input of a model. Subclasses define `map_record`.

    If anything fails for a training image (reading it, its annotations or maps, or an
    augmentation), it is named in one warning and skipped: None is returned, and Detectron2's loader
    draws another image. Too many such images are an error. At test time a single one is, because a
    skipped image would change the metrics.

    Args:
        is_train: training or inference.
        augmentations: applied in this order.
        image_format: "RGB" or "BGR", whichever the model's pixel statistics are for. Or a number of
            channels, which are taken as they are; then, augmentations may not change colours.
        max_skipped: number of different unusable images at which a worker gives up.

    Raises:
        ValueError: `max_skipped` is not positive, or an augmentation changes colours that images do
            not have.

    Attributes:
        num_images: number of images in the data set, or None if unknown; see `build_train_loader`.
            If all are unusable, no other image can be drawn.
    """

    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str | int,
        max_skipped: int = 100,
    ) -> None:
        if max_skipped < 1:
            raise ValueError(f"max_skipped must be at least 1, got {max_skipped}")
        if isinstance(image_format, int):
            refuse_colour_augmentations(augmentations, image_format)
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.max_skipped = max_skipped
        self.num_images: int | None = None
        self._unusable: set[str] = set()
        # An image that fails with one augmentation and passes with another is named only once.
        self._named: set[str] = set()
        mode = "training" if is_train else "inference"
        logger.info("augmentations in %s: %s", mode, augmentations)

    def __call__(self, dataset_dict: Mapping[str, object]) -> Sample | None:
        """Maps one image.

        Args:
            dataset_dict: the image in Detectron2's standard format; it is not changed.

        Returns:
            What `map_record` returns; None if the image is to be skipped.

        Raises:
            ValueError: the image cannot be used at test time, or too many cannot in training.
        """
        if get_worker_info() is not None:  # a process that maps images and does nothing else
            keep_freed_memory()
        file_name = str(dataset_dict.get("file_name"))
        try:
            sample = self.map_record(cast(Sample, copy.deepcopy(dict(dataset_dict))))
        except Exception as error:  # whatever it is, the message must name the image
            self._skip_or_raise(file_name, error)
            return None
        self._unusable.discard(file_name)
        return sample

    @abstractmethod
    def map_record(self, record: Sample) -> Sample:
        """Maps one image. It may raise anything; the class says what happens then.

        Args:
            record: the data set dict, to be changed and returned.
        """

    def augment(
        self, record: Sample, image: np.ndarray, sem_seg: np.ndarray | None = None
    ) -> T.TransformList:
        """Augments an image, and its label map if it has one.

        Args:
            record: to which "image" and "sem_seg" are added, and "height" and "width" of the image
                in its file.
            image: (H, W, C).
            sem_seg: (H, W).

        Returns:
            The transforms that were applied.
        """
        record.setdefault("height", image.shape[0])
        record.setdefault("width", image.shape[1])
        augmented = augment(self.augmentations, image, sem_seg)
        record["image"] = augmented.image
        if augmented.sem_seg is not None:
            record["sem_seg"] = augmented.sem_seg
        return augmented.transforms

    def _skip_or_raise(self, file_name: str, error: Exception) -> None:
        if not self.is_train:
            raise ValueError(f"cannot use the test image {file_name}: {reason(error)}") from error
        self._unusable.add(file_name)
        count = len(self._unusable)
        if file_name not in self._named:
            self._named.add(file_name)
            logger.warning(
                "skipped image %s (unusable image %d in process %d): %s",
                file_name,
                count,
                os.getpid(),
                reason(error),
            )
        if count >= min(self.max_skipped, self.num_images or count + 1):
            of_all = "" if self.num_images is None else f" of {self.num_images}"
            raise ValueError(
                f"{count}{of_all} training images cannot be used "
                f"(max_skipped={self.max_skipped}), including "
                f"{', '.join(sorted(self._unusable)[:5])}. The last error: {reason(error)}"
            ) from error


def _transform(
    annotation: Annotation, transforms: T.TransformList, image_size: tuple[int, int]
) -> Annotation:
    """Detectron2's transform of one annotation, except that a crop does not cut polygons.

    Parts outside the image do not affect a mask loss, which rasterises inside proposals. Cutting
    them off would need shapely, which Detectron2 does not install.
    """
    polygons = annotation.get("segmentation")
    if not isinstance(polygons, list):
        return detection_utils.transform_instance_annotations(annotation, transforms, image_size)
    del annotation["segmentation"]
    result = detection_utils.transform_instance_annotations(annotation, transforms, image_size)
    points = (np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons)
    result["segmentation"] = [transforms.apply_coords(p).reshape(-1) for p in points]
    return result


class DatasetMapper(RecordMapper):
    """Maps a data set dict to the input of a detector.

    It works like Detectron2's, except for the rule of `RecordMapper` and that

    - polygon and RLE masks may be mixed: an image with an RLE mask gets bitmasks, others keep
      polygons, which a crop moves but does not cut;
    - resizing leaves at least one pixel of a very thin image;
    - fields of annotations that are not trained on, such as keypoints, are left out, as Detectron2
      does without `use_keypoint`.

    As in the official recipes, boxes are cut to the crop. They are fitted to what is left of the
    mask only with `recompute_boxes`.

    Args:
        is_train, augmentations, image_format, max_skipped: as in `RecordMapper`.
        use_instance_mask: whether to pass masks on.
        recompute_boxes: whether to fit boxes to the masks after the augmentations (for
            large-scale jitter). Masks are bitmasks then.
        instance_augmentation: changes image and annotations in training before all other
            augmentations, such as `InstaBoost`. Semantic maps are not changed.

    Raises:
        ValueError: `max_skipped` is not positive, or masks are not used but needed to
            recompute boxes or to augment instances.
    """

    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str | int,
        use_instance_mask: bool = False,
        recompute_boxes: bool = False,
        instance_augmentation: InstanceAugmentation | None = None,
        max_skipped: int = 100,
    ) -> None:
        if recompute_boxes and not use_instance_mask:
            raise ValueError("recompute_boxes=True needs use_instance_mask=True, got False")
        if instance_augmentation is not None and isinstance(image_format, int):
            raise ValueError(
                f"instance_augmentation needs colours, but images have {image_format} channels"
            )
        if instance_augmentation is not None and not use_instance_mask:
            raise ValueError("instance_augmentation needs use_instance_mask=True, got False")
        super().__init__(
            is_train,
            augmentations=augmentations,
            image_format=image_format,
            max_skipped=max_skipped,
        )
        self.use_instance_mask = use_instance_mask
        self.recompute_boxes = recompute_boxes
        self.instance_augmentation = instance_augmentation

    def map_record(self, record: Sample) -> Sample:
        """Maps one image.

        Args:
            record: an image in Detectron2's standard format.

        Returns:
            The record with "image" (C, H, W) uint8 and, in training, "instances" and, if it has a
            "sem_seg_file_name", "sem_seg" (H, W) int64.
        """
        image = read_record_image(record, self.image_format)
        sem_seg = read_semantic_map(record, image) if self.is_train else None
        annotations = record.pop("annotations", None)
        if self.is_train and self.instance_augmentation is not None and annotations:
            image, annotations = self.instance_augmentation(image, annotations)
        transforms = self.augment(record, image, sem_seg)
        if self.is_train and annotations is not None:
            height, width = record["image"].shape[1:]
            record["instances"] = self._to_instances(annotations, transforms, (height, width))
        return record

    def _to_instances(
        self,
        annotations: Sequence[Annotation],
        transforms: T.TransformList,
        image_size: tuple[int, int],
    ) -> Instances:
        fields = _FIELDS if self.use_instance_mask else _FIELDS[:-1]
        annotations = [
            cast(Annotation, {field: value for field, value in a.items() if field in fields})
            for a in annotations
            if not a.get("iscrowd", 0)
        ]
        masks = [a.get("segmentation") for a in annotations]
        if self.use_instance_mask and not all(masks):
            raise ValueError(
                "an annotation has no mask: load the data set with masks=True, or set "
                "use_instance_mask=False"
            )
        # Polygons crop and scale without loss, but cannot hold an RLE mask, and do not give the box
        # of what a crop leaves.
        bitmasks = self.recompute_boxes or any(isinstance(m, dict) for m in masks)
        annotations = [_transform(a, transforms, image_size) for a in annotations]
        instances = detection_utils.annotations_to_instances(
            annotations, image_size, mask_format="bitmask" if bitmasks else "polygon"
        )
        if self.recompute_boxes and len(instances) > 0:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return detection_utils.filter_empty_instances(instances)


def read_semantic_map(record: Mapping[str, object], image: np.ndarray) -> np.ndarray | None:
    """The map (H, W) uint8 of a data set dict; None if it has none.

    Args:
        record: with or without "sem_seg_file_name".
        image: (H, W, C), the image that the map belongs to.

    Raises:
        ValueError: the map is not an image, has the wrong size, or is not 8-bit grey or palette;
            names the file.
    """
    file_name = record.get("sem_seg_file_name")
    if file_name is None:
        return None
    labels = read_numbers(str(file_name))
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(
            f"the semantic map {file_name} must have one 8-bit label per pixel, "
            f"got {labels.dtype} of the shape {labels.shape}"
        )
    check_map_size(f"the semantic map {file_name}", labels, image.shape[:2])
    return labels


def build_train_loader(
    dataset: list[Record],
    *,
    mapper: RecordMapper,
    total_batch_size: int,
    sampler: Sampler[int] | None = None,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
) -> Iterable[list[Sample]]:
    """Detectron2's training loader, with a clear error if no image can be used.

    Args:
        dataset: Detectron2's standard data set dicts.
        mapper: whose `num_images` is set.
        total_batch_size, sampler, aspect_ratio_grouping, num_workers: as in Detectron2's
            `build_detection_train_loader`.
    """
    mapper.num_images = len({str(record.get("file_name")) for record in dataset})
    return build_detection_train_loader(
        dataset,
        mapper=mapper,
        sampler=sampler,
        total_batch_size=total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
    )
