"""Detectron2's data set mapper, made to survive the images and masks of real data sets."""

import copy
import logging
import os
import struct
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from detectron2.data import DatasetMapper as _DatasetMapper
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

from vitadapter.data.semantic_maps import read_semantic_map

__all__ = ["IMAGE_ERRORS", "DatasetMapper", "read_image", "read_record_image"]

logger = logging.getLogger(__name__)

InstanceAugmentation = Callable[
    [np.ndarray, Sequence[dict[str, object]]], tuple[np.ndarray, list[dict[str, object]]]
]

IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow and Detectron2 raise on a missing, broken or wrongly sized image."""

# What Pillow raises on broken EXIF data.
_EXIF_ERRORS = (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error)
_16_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _EXIF_ERRORS:  # the pixels are good: Detectron2 takes them as they are, too
        return image


def read_image(file_name: str, image_format: str) -> np.ndarray:
    """Reads an image of any colour mode; alpha is dropped and EXIF orientation applied.

    Args:
        file_name: path of the image.
        image_format: "RGB", "BGR" or another format of Detectron2's `read_image`.

    Returns:
        np.ndarray: `(H, W, C)` uint8. 16-bit grey is scaled to 8 bit, where Detectron2 clips it.

    Raises:
        OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError: not an image.
    """
    with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
        # Detectron2 looks for EXIF data first, and swallows the error of a broken PNG there.
        image.load()
        upright = _upright(image)
        if upright.mode in _16_BIT_MODES:
            grey = np.asarray(upright).astype(np.int64) >> 8
            upright = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
        return detection_utils.convert_PIL_to_numpy(upright, image_format)


def read_record_image(record: Mapping[str, object], image_format: str) -> np.ndarray:
    """The image of a data set dict, `(H, W, C)`, of the size that its annotations give.

    Raises:
        OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError: not an image,
            or one of another size.
    """
    image = read_image(str(record["file_name"]), image_format)
    detection_utils.check_image_size(dict(record), image)
    return image


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


class DatasetMapper(_DatasetMapper):
    """Maps a data set dict to the input of a detector.

    As Detectron2's, except:

    - in training an image that cannot be read, or has another size than its annotations say,
      is named in one warning and skipped (None is returned, and Detectron2's loader draws
      another image); at test time it is an error, because a skipped image would change the AP;
    - polygon and RLE masks may be mixed: an image with an RLE mask gets bitmasks, others keep
      polygons, which a crop moves but does not cut;
    - a semantic map that cannot be read or has another size than its image counts as such an
      image.

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
            is_train: training or inference.
            augmentations: applied in this order.
            image_format: "RGB" or "BGR", as the model's pixel statistics ask.
            use_instance_mask: whether to hand over masks.
            recompute_boxes: whether to draw boxes anew around the masks after the augmentations
                (large-scale jitter); masks are bitmasks then.
            instance_augmentation: changes image and annotations before all augmentations in
                training, such as :class:`~vitadapter.data.insta_boost.InstaBoost`; semantic maps
                stay as they are.
            max_skipped: number of different unusable images after which a worker gives up.

        Raises:
            ValueError: `max_skipped` is not positive, or boxes are to be recomputed or instances
                augmented without masks.
        """
        if max_skipped < 1:
            raise ValueError(f"max_skipped must be at least 1, got {max_skipped}")
        if recompute_boxes and not use_instance_mask:
            raise ValueError("recompute_boxes=True needs use_instance_mask=True, got False")
        if instance_augmentation is not None and not use_instance_mask:
            raise ValueError("instance_augmentation needs use_instance_mask=True, got False")
        super().__init__(
            is_train,
            augmentations=augmentations,
            image_format=image_format,
            use_instance_mask=use_instance_mask,
            recompute_boxes=recompute_boxes,
        )
        self.instance_augmentation = instance_augmentation
        self.max_skipped = max_skipped
        self._skipped: set[str] = set()

    def __call__(self, dataset_dict: Mapping[str, object]) -> dict[str, object] | None:
        """
        Args:
            dataset_dict: one image in Detectron2's standard format.

        Returns:
            dict: with "image" `(C, H, W)` uint8 and, in training, "instances" and, for images with
            a "sem_seg_file_name", "sem_seg" `(H, W)` int64; None when the image is to be skipped.

        Raises:
            ValueError: the image cannot be used at test time, or too many in training.
        """
        dataset_dict = copy.deepcopy(dict(dataset_dict))
        try:
            image = read_record_image(dataset_dict, self.image_format)
            sem_seg = read_semantic_map(dataset_dict, image) if self.is_train else None
        except IMAGE_ERRORS as error:
            self._skip_or_raise(str(dataset_dict["file_name"]), error)
            return None
        dataset_dict.setdefault("height", image.shape[0])
        dataset_dict.setdefault("width", image.shape[1])

        annotations = dataset_dict.pop("annotations", None)
        if self.is_train and self.instance_augmentation is not None and annotations:
            image, annotations = self.instance_augmentation(image, annotations)

        aug_input = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(aug_input)
        image = np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))  # (C, H, W)
        dataset_dict["image"] = torch.as_tensor(image)
        if sem_seg is not None:
            # A flip leaves a view of negative strides, which torch does not take.
            sem_seg = np.ascontiguousarray(aug_input.sem_seg)
            dataset_dict["sem_seg"] = torch.as_tensor(sem_seg.astype(np.int64))

        if self.is_train and annotations is not None:
            dataset_dict["instances"] = self._to_instances(
                annotations, transforms, image.shape[1:], str(dataset_dict["file_name"])
            )
        return dataset_dict

    def _skip_or_raise(self, file_name: str, error: Exception) -> None:
        if not self.is_train:
            raise ValueError(f"cannot use the test image {file_name}: {error}") from error
        if file_name in self._skipped:
            return
        self._skipped.add(file_name)
        count = len(self._skipped)
        logger.warning(
            "skipped image %s (unusable image %d in process %d): %s",
            file_name,
            count,
            os.getpid(),
            error,
        )
        if count >= self.max_skipped:
            raise ValueError(
                f"{count} training images cannot be used (max_skipped={self.max_skipped}), "
                f"among them {', '.join(sorted(self._skipped)[:5])}"
            ) from error

    def _to_instances(
        self,
        annotations: Sequence[dict[str, object]],
        transforms: T.TransformList,
        image_size: tuple[int, int],
        file_name: str,
    ) -> Instances:
        annotations = [a for a in annotations if not a.get("iscrowd", 0)]
        masks = [a.get("segmentation") for a in annotations]
        if not self.use_instance_mask:
            for annotation in annotations:
                annotation.pop("segmentation", None)
        elif not all(masks):
            raise ValueError(
                f"an annotation of {file_name} has no mask: load the data set with masks=True, "
                "or set use_instance_mask=False"
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
