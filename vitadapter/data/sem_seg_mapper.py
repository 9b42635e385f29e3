"""Images and label maps to the input of a semantic segmenter."""

from collections.abc import Mapping, Sequence

import numpy as np
from detectron2.data import transforms as T

from vitadapter.data.dataset_mapper import DatasetMapper
from vitadapter.data.image_files import read_image
from vitadapter.data.sem_seg_labels import LabelReader
from vitadapter.data.transforms import augment

__all__ = ["SemSegDatasetMapper"]


class SemSegDatasetMapper(DatasetMapper):
    """Maps a data set dict to the input of a semantic segmenter.

    As for detectors, a training image of which anything fails (unreadable, a label map of another
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

    def map_record(self, record: dict[str, object]) -> dict[str, object]:
        """
        Args:
            record: with "file_name" and, in training, "sem_seg_file_name".

        Returns:
            dict: with "image" `(3, h, w)` uint8, "height" and "width" of the image in its file
            and, in training, "sem_seg" `(h, w)` int64.
        """
        image, labels = self._read(record)
        record["height"], record["width"] = image.shape[:2]
        augmented = augment(self.augmentations, image, labels)
        record["image"] = augmented.image
        if augmented.sem_seg is not None:
            record["sem_seg"] = augmented.sem_seg
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
