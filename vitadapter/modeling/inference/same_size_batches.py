"""Batched inference whose results do not depend on which images share a batch.

A batch is padded to its largest image. A plain ViT sees the padding: as tokens of global
attention, behind the position embedding, in the spatial prior's convolutions and in the group
norms of dense heads. No mask takes it out again of weights that were trained with some, so the
results of an image would change with its neighbours. Images that are padded to the same size
anyway, when each is alone, can share a batch without that; others do not.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

__all__ = ["predict_by_size"]

Input = dict[str, object]
Output = dict[str, object]


def predict_by_size(
    predict: Callable[[list[Input]], Sequence[Output]],
    batched_inputs: Sequence[Input],
    size_divisibility: int,
) -> list[Output]:
    """Predicts images in one batch for each padded size.

    Args:
        predict: takes a batch of Detectron2's standard inputs, returns one output for each.
        batched_inputs: any number, with "image" (C, H, W).
        size_divisibility: what the model pads heights and widths to a multiple of, in pixels.

    Returns:
        one output for each input, in order.
    """
    divisor = max(size_divisibility, 1)
    batches: dict[tuple[int, int], list[int]] = {}
    for index, single in enumerate(batched_inputs):
        image: Tensor = single["image"]
        height, width = (-(-side // divisor) for side in image.shape[-2:])
        batches.setdefault((height, width), []).append(index)
    outputs: dict[int, Output] = {}
    for indexes in batches.values():
        predicted = predict([batched_inputs[i] for i in indexes])
        outputs.update(zip(indexes, predicted, strict=True))
    return [outputs[i] for i in range(len(batched_inputs))]
