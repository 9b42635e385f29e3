"""Images and annotations to the input of a detector, and what is done with unusable images."""

import copy
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from detectron2.data import build_detection_train_loader, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Instances
from torch.utils.data import Sampler

from vitadapter.data.image_files import read_image, read_numbers, read_record_image, reason
from vitadapter.data.transforms import augment

__all__ = [
    "DatasetMapper",
    "RecordMapper",
    "build_train_loader",
    "read_image",
    "read_semantic_map",
]

logger = logging.getLogger(__name__)

InstanceAugmentation = Callable[
    [np.ndarray, Sequence[dict[str, object]]], tuple[np.ndarray, list[dict[str, object]]]
]

# What a detector is trained on; a flip of keypoints would need to know their partners.
_FIELDS = ("bbox", "bbox_mode", "category_id", "segmentation")


class RecordMapper(ABC):
    """Maps a data set dict to the input of a model, which :meth:`map_record` says.

    In training an image of which anything fails (reading it, its annotations or maps, an
    augmentation) is named in one warning and skipped (None is returned, and Detectron2's loader
    draws another image), up to a number of images; at test time it is an error, because a skipped
    image would change the metrics.

    Attributes:
        num_images: of the data set; when all of them are unusable, no other can be drawn. None if
            not known, see :func:`build_train_loader`.
    """

    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        max_skipped: int = 100,
    ) -> None:
        """
        Args:
            is_train: training or inference.
            augmentations: applied in this order.
            image_format: "RGB" or "BGR", as the model's pixel statistics ask.
            max_skipped: number of different unusable images after which a worker gives up.

        Raises:
            ValueError: `max_skipped` is not positive.
        """
        if max_skipped < 1:
            raise ValueError(f"max_skipped must be at least 1, got {max_skipped}")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.max_skipped = max_skipped
        self.num_images: int | None = None
        self._unusable: set[str] = set()
        # Images that fail in one augmentation and pass in another are not named again.
        self._named: set[str] = set()
        mode = "training" if is_train else "inference"
        logger.info("augmentations in %s: %s", mode, augmentations)

    def __call__(self, dataset_dict: Mapping[str, object]) -> dict[str, object] | None:
        """
        Args:
            dataset_dict: one image in Detectron2's standard format; it stays as it is.

        Returns:
            dict: of :meth:`map_record`; None when the image is to be skipped.

        Raises:
            ValueError: the image cannot be used at test time, or too many in training.
        """
        file_name = str(dataset_dict.get("file_name"))
        try:
            sample = self.map_record(copy.deepcopy(dict(dataset_dict)))
        except Exception as error:  # nothing in a data set may stop training without a name
            self._skip_or_raise(file_name, error)
            return None
        self._unusable.discard(file_name)
        return sample

    @abstractmethod
    def map_record(self, record: dict[str, object]) -> dict[str, object]:
        """Maps one image; whatever it raises is told by the rule of the class.

        Args:
            record: to be changed and returned.
        """

    def augment(
        self, record: dict[str, object], image: np.ndarray, sem_seg: np.ndarray | None = None
    ) -> T.TransformList:
        """Augments an image, and a label map if there is one, to "image" and "sem_seg".

        Args:
            record: gets both, and "height" and "width" of the image in its file.
            image: (H, W, C).
            sem_seg: (H, W).

        Returns:
            T.TransformList: what was done.
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
                f"(max_skipped={self.max_skipped}), among them "
                f"{', '.join(sorted(self._unusable)[:5])}; of the last one: {reason(error)}"
            ) from error


def _transform(
    annotation: dict[str, object], transforms: T.TransformList, image_size: tuple[int, int]
) -> dict[str, object]:
    """Detectron2's transform of one annotation, except that a crop moves polygons uncut.

    What lies outside the image has no effect on a mask loss, which rasterises inside proposals;
    cutting it off needs shapely, which Detectron2 does not install.
    """
    polygons = annotation.get("segmentation")
    if not isinstance(polygons, list):
        return detection_utils.transform_instance_annotations(annotation, transforms, image_size)
    del annotation["segmentation"]
    moved = detection_utils.transform_instance_annotations(annotation, transforms, image_size)
    points = (np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons)
    moved["segmentation"] = [transforms.apply_coords(p).reshape(-1) for p in points]
    return moved


class DatasetMapper(RecordMapper):
    """Maps a data set dict to the input of a detector.

    As Detectron2's, except for the rule of `RecordMapper`, and:

    - polygon and RLE masks may be mixed: an image with an RLE mask gets bitmasks, others keep
      polygons, which a crop moves but does not cut;
    - a resize leaves at least one pixel of a very thin image;
    - fields of annotations that are not trained on, such as keypoints, are left out. (So does
      Detectron2 without `use_keypoint`.)

    Boxes are cut to the crop and, unless `recompute_boxes`, not drawn anew around what is left of
    the mask, as in the official recipes.
    """

    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        recompute_boxes: bool = False,
        instance_augmentation: InstanceAugmentation | None = None,
        max_skipped: int = 100,
    ) -> None:
        """
        Args:
            is_train, augmentations, image_format, max_skipped: as in :class:`RecordMapper`.
            use_instance_mask: whether to hand over masks.
            recompute_boxes: whether to draw boxes anew around the masks after the augmentations
                (large-scale jitter); masks are bitmasks then.
            instance_augmentation: changes image and annotations before all augmentations in
                training, such as :class:`~vitadapter.data.insta_boost.InstaBoost`; semantic maps
                stay as they are.

        Raises:
            ValueError: `max_skipped` is not positive, or boxes are to be recomputed or instances
                augmented without masks.
        """
        if recompute_boxes and not use_instance_mask:
            raise ValueError("recompute_boxes=True needs use_instance_mask=True, got False")
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

    def map_record(self, record: dict[str, object]) -> dict[str, object]:
        """
        Args:
            record: an image in Detectron2's standard format.

        Returns:
            dict: with "image" `(C, H, W)` uint8 and, in training, "instances" and, for images with
            a "sem_seg_file_name", "sem_seg" `(H, W)` int64.
        """
        image = read_record_image(record, self.image_format)
        sem_seg = read_semantic_map(record, image) if self.is_train else None
        annotations = record.pop("annotations", None)
        if self.is_train and self.instance_augmentation is not None and annotations:
            image, annotations = self.instance_augmentation(image, annotations)
        transforms = self.augment(record, image, sem_seg)
        if self.is_train and annotations is not None:
            record["instances"] = self._to_instances(
                annotations, transforms, tuple(record["image"].shape[1:])
            )
        return record

    def _to_instances(
        self,
        annotations: Sequence[dict[str, object]],
        transforms: T.TransformList,
        image_size: tuple[int, int],
    ) -> Instances:
        fields = _FIELDS if self.use_instance_mask else _FIELDS[:-1]
        annotations = [
            {field: a[field] for field in fields if field in a}
            for a in annotations
            if not a.get("iscrowd", 0)
        ]
        masks = [a.get("segmentation") for a in annotations]
        if self.use_instance_mask and not all(masks):
            raise ValueError(
                "an annotation has no mask: load the data set with masks=True, or set "
                "use_instance_mask=False"
            )
        # Polygons, which crop and scale without loss, cannot hold an RLE mask, nor tell the box
        # of the part of them that a crop leaves.
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
        record: with "sem_seg_file_name", or without.
        image: (H, W, C), the image that the map belongs to.

    Raises:
        ValueError: not an image, one of another size, or one that is not 8 bit of grey or palette;
            names the file.
    """
    file_name = record.get("sem_seg_file_name")
    if file_name is None:
        return None
    labels = read_numbers(str(file_name))
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(
            f"the semantic map {file_name} must have one label of 8 bit per pixel, "
            f"got {labels.dtype} of the shape {labels.shape}"
        )
    if labels.shape != image.shape[:2]:
        raise ValueError(
            f"the semantic map {file_name} must have the image's size "
            f"{image.shape[:2]}, got {labels.shape}"
        )
    return labels


def build_train_loader(
    dataset: list[dict[str, object]],
    *,
    mapper: RecordMapper,
    total_batch_size: int,
    sampler: Sampler[int] | None = None,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
) -> Iterable[list[dict[str, object]]]:
    """Detectron2's training loader, which ends with a clear error when no image can be used.

    Args:
        dataset: Detectron2's standard data set dicts.
        mapper: told how many images there are.
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
