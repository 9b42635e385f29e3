"""The inputs of the models that take images one by one, in Detectron2's standard format."""

from typing import TypedDict

from detectron2.structures import Instances
from torch import Tensor

__all__ = ["ImageRecord", "asked_size"]


class ImageRecord(TypedDict, total=False):
    """One image and what is known of it; other keys are ignored.

    Attributes:
        image: (3, H, W), always present.
        height, width: size of the output in pixels; by default, that of the image.
        file_name, sem_seg_file_name: names for messages.
        instances: ground truth at the size of `image`.
        sem_seg: labels (H, W).
    """

    image: Tensor
    height: int
    width: int
    file_name: str
    instances: Instances
    sem_seg: Tensor
    sem_seg_file_name: str


def asked_size(record: ImageRecord) -> tuple[int, int]:
    """Returns the (height, width) of the output that a record asks for."""
    height, width = record["image"].shape[-2:]
    return record.get("height", height), record.get("width", width)
