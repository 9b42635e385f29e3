"""Batched inference whose results do not depend on which images share a batch.

A batch is padded to the size of its largest image. Padding changes the results of a plain ViT: it
becomes tokens of the global attention, and reaches the spatial prior's convolutions and the group
norms of dense heads. Masks cannot undo this, since the weights were trained with some padding. So
only images that are padded to the same size when each is alone share a batch.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from vitadapter.modeling.image_record import ImageRecord

__all__ = ["predict_by_size"]

Record = TypeVar("Record", bound=ImageRecord)
Output = TypeVar("Output")


def predict_by_size(
    predict: Callable[[list[Record]], Sequence[Output]],
    batched_inputs: Sequence[Record],
    size_divisibility: int,
) -> list[Output]:
    """Predicts images in one batch for each padded size.

    Args:
        predict: maps a batch of images to one output for each.
        batched_inputs: any number of images.
        size_divisibility: the model pads heights and widths to a multiple of this, in pixels.

    Returns:
        One output for each image, in order.
    """
    divisor = max(size_divisibility, 1)
    batches: dict[tuple[int, int], list[int]] = {}
    for index, single in enumerate(batched_inputs):
        height, width = (-(-side // divisor) for side in single["image"].shape[-2:])
        batches.setdefault((height, width), []).append(index)
    outputs: dict[int, Output] = {}
    for indexes in batches.values():
        predicted = predict([batched_inputs[i] for i in indexes])
        outputs.update(zip(indexes, predicted, strict=True))
    return [outputs[i] for i in range(len(batched_inputs))]
