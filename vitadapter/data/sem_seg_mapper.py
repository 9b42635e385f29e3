"""Images and label maps to the input of a semantic segmenter."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.data import transforms as T

from vitadapter.data.dataset_mapper import IMAGE_ERRORS, DatasetMapper, read_image
from vitadapter.data.sem_seg_labels import LabelReader

__all__ = ["SemSegDatasetMapper"]


class SemSegDatasetMapper(DatasetMapper):
    """Maps a data set dict to the input of a semantic segmenter.

    As for detectors, a training image that cannot be used (unreadable, a label map of another
    size, a label outside the classes) is named in one warning and skipped; at test time it is an
    error. Test images pass the augmentations without their label map, which the evaluator reads.
    """

    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        read_label: LabelReader,
        max_skipped: int = 100,
    ) -> None:
        """
        Args:
            is_train: training or inference.
            augmentations: applied in this order.
            image_format: "RGB" or "BGR", as the model's pixel statistics ask.
            read_label: from the file of a label map to its labels `(H, W)`.
            max_skipped: number of different unusable images after which a worker gives up.

        Raises:
            ValueError: `max_skipped` is not positive.
        """
        super().__init__(
            is_train,
            augmentations=augmentations,
            image_format=image_format,
            max_skipped=max_skipped,
        )
        self.read_label = read_label

    def __call__(self, dataset_dict: Mapping[str, object]) -> dict[str, object] | None:
        """
        Args:
            dataset_dict: with "file_name" and, in training, "sem_seg_file_name".

        Returns:
            dict: with "image" `(3, h, w)` uint8, "height" and "width" of the image in its file
            and, in training, "sem_seg" `(h, w)` int64; None when the image is to be skipped.

        Raises:
            ValueError: the image cannot be used at test time, or too many in training.
        """
        record = copy.deepcopy(dict(dataset_dict))
        try:
            image, labels = self._read(record)
        except IMAGE_ERRORS as error:
            self._skip_or_raise(str(record["file_name"]), error)
            return None
        record["height"], record["width"] = image.shape[:2]
        aug_input = T.AugInput(image, sem_seg=labels)
        self.augmentations(aug_input)
        pixels = np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))  # (3, h, w)
        record["image"] = torch.as_tensor(pixels)
        if labels is not None:
            record["sem_seg"] = torch.as_tensor(np.ascontiguousarray(aug_input.sem_seg)).long()
        return record

    def _read(self, record: Mapping[str, object]) -> tuple[np.ndarray, np.ndarray | None]:
        image = read_image(str(record["file_name"]), self.image_format)
        if not self.is_train:
            return image, None
        # OpenCV resizes 32 bit integers, not 64.
        labels = self.read_label(str(record["sem_seg_file_name"]), np.int32)
        if labels.shape != image.shape[:2]:
            raise ValueError(
                f"the label map {record['sem_seg_file_name']} has (height, width) {labels.shape}, "
                f"its image {image.shape[:2]}"
            )
        return image, labels
