"""Reads label maps of semantic segmentation and maps them to the input of a segmenter."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import transforms as T
from numpy.typing import DTypeLike

from vitadapter.data.dataset_mapper import RecordMapper, Sample
from vitadapter.data.dataset_source import Record, first_few
from vitadapter.data.image_files import check_map_size, read_numbers, read_record_image

__all__ = ["LabelReader", "SemSegDatasetMapper", "read_class_names"]


@dataclass(frozen=True)
class LabelReader:
    """Reads a label map, and refuses values that are neither a class nor ignored.

    Labels are the numbers in the file, which have 1 to 32 bits. For a palette image, they are the
    indices into the palette.

    Args:
        num_classes: K; classes are 0 .. K - 1.
        ignore_label: label of pixels that are neither trained on nor evaluated, both in files and
            in what is returned.
        reduce_zero_label: whether files hold 0 for "no class" and class + 1 elsewhere.

    Raises:
        ValueError: there is no class, or the ignored label would be mistaken for a class.
    """

    num_classes: int
    ignore_label: int = 255
    reduce_zero_label: bool = False

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"dataset.num_classes must be positive, got {self.num_classes}")
        # Without the shift, a class of the file may be the ignored one. With it, the classes move.
        if self.reduce_zero_label and 0 <= self.ignore_label <= self.num_classes:
            raise ValueError(
                "with dataset.reduce_zero_label=True dataset.ignore_label must not be one of 0 .. "
                f"dataset.num_classes={self.num_classes}, got {self.ignore_label}"
            )

    def __call__(self, file_name: str, dtype: DTypeLike = np.int64) -> np.ndarray:
        """Reads the label map of a file.

        Args:
            file_name: of an image with one number per pixel.
            dtype: of the result. Detectron2's evaluator passes it.

        Returns:
            (H, W), classes and `ignore_label`.

        Raises:
            ValueError: it is not an image, it is a colour image, or a label is not a class; names
                the file.
        """
        labels = read_numbers(file_name)
        if labels.ndim != 2 or labels.dtype.kind not in "biu":
            raise ValueError(
                f"the label map {file_name} must have one whole number per pixel (8- or 16-bit "
                f"grey, or a palette), got {labels.dtype} of the shape {labels.shape}: convert it "
                "first (scripts/prepare_*.py)"
            )
        labels = labels.astype(np.int64)
        return self._shifted(labels, file_name).astype(dtype)

    def of_record(
        self, record: Record, image: np.ndarray, dtype: DTypeLike = np.int64
    ) -> np.ndarray:
        """Reads the label map of a data set dict.

        Args:
            record: with "sem_seg_file_name".
            image: (H, W, C), the image that the map belongs to.
            dtype: of the result.

        Raises:
            ValueError: as for a file, or the map has the wrong size.
        """
        labels = self(str(record["sem_seg_file_name"]), dtype)
        check_map_size(f"the label map {record['sem_seg_file_name']}", labels, image.shape[:2])
        return labels

    def _shifted(self, labels: np.ndarray, file_name: str) -> np.ndarray:
        ignored = labels == self.ignore_label
        if self.reduce_zero_label:
            ignored |= labels == 0
            labels = labels - 1
        outside = labels[~ignored & ((labels < 0) | (labels >= self.num_classes))]
        if outside.size:
            first = int(self.reduce_zero_label)
            found = first_few((np.unique(outside) + first).tolist(), 5)
            raise ValueError(
                f"labels must be {first} .. {first + self.num_classes - 1} or "
                f"{self.ignore_label} (ignored){', or 0' if self.reduce_zero_label else ''}, got "
                f"{found} in {file_name}: set dataset.num_classes=..., dataset.ignore_label=... or "
                "dataset.reduce_zero_label=..."
            )
        return np.where(ignored, self.ignore_label, labels)


def read_class_names(file_name: str) -> Sequence[str]:
    """Reads class names from a text file: one per line, in the order of the labels.

    Raises:
        ValueError: there is no such file, a line between names is empty, or a name occurs twice.
    """
    path = Path(file_name).expanduser()
    if not path.is_file():
        raise ValueError(
            f"the file of class names {path} does not exist: set dataset.class_names=..."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"dataset.class_names={path} must be a text file: {error}") from error
    names = [line.strip() for line in text.rstrip().splitlines()]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not names or "" in names or repeated:
        raise ValueError(
            f"{path} must have one class name per line, each only once, got "
            f"{f'{repeated[0]!r} more than once' if repeated and repeated[0] else 'an empty line'}"
        )
    return names


class SemSegDatasetMapper(RecordMapper):
    """Maps a data set dict to the input of a semantic segmenter.

    Test images are mapped without their label map, which the evaluator reads.

    Args:
        is_train, augmentations, image_format, max_skipped: as in `RecordMapper`.
        read_label: reads the label maps.

    Raises:
        ValueError: `max_skipped` is not positive.
    """

    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str | int,
        read_label: LabelReader,
        max_skipped: int = 100,
    ) -> None:
        super().__init__(
            is_train,
            augmentations=augmentations,
            image_format=image_format,
            max_skipped=max_skipped,
        )
        self.read_label = read_label

    def map_record(self, record: Sample) -> Sample:
        """Maps one image.

        Args:
            record: with "file_name" and, in training, "sem_seg_file_name".

        Returns:
            The record with "image" (3, h, w) uint8, "height" and "width" of the image in its file
            and, in training, "sem_seg" (h, w) int64.
        """
        image = read_record_image(record, self.image_format)
        # OpenCV can resize 32-bit integers, but not 64-bit ones.
        labels = self.read_label.of_record(record, image, np.int32) if self.is_train else None
        self.augment(record, image, labels)
        return record
