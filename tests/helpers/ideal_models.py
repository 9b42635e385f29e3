"""Models that see every object of a drawn image, whole or cut, and no more of it than is shown.

The first channel of a drawn image has the number of the object of each pixel, 0 for none, and the
second one its class.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import BitMasks, Instances

from vitadapter.modeling.image_record import ImageRecord

NUM_CLASSES = 4
THINGS = (1, 2)


def drawn(height: int, width: int) -> np.ndarray:
    """An image (H, W, 3) without objects."""
    return np.zeros((height, width, 3), np.uint8)


def draw(image: np.ndarray, number: int, kind: int, pixels: object) -> None:
    """Draws an object at an index of the image's pixels."""
    image[pixels] = (number, kind, 0)


def record_of(image: np.ndarray) -> ImageRecord:
    return {"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}


def _seen(record: ImageRecord) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    numbers, kinds, _ = record["image"].long()
    return numbers, kinds, [n for n in numbers.unique().tolist() if n > 0]


def detections(records: Sequence[ImageRecord], *, masks: bool) -> list[dict[str, Instances]]:
    """The objects; the more is visible, the higher is the score."""
    outputs = []
    for record in records:
        numbers, kinds, found = _seen(record)
        shown = (
            torch.stack([numbers == n for n in found]) if found else torch.zeros(0, *numbers.shape)
        )
        instances = Instances(tuple(numbers.shape))
        instances.pred_boxes = BitMasks(shown).get_bounding_boxes()
        instances.scores = shown.flatten(1).sum(1) / 1e6
        instances.pred_classes = torch.tensor([int(kinds[m].max()) for m in shown]).long()
        if masks:
            instances.pred_masks = shown
        outputs.append({"instances": instances})
    return outputs


def class_scores(records: Sequence[ImageRecord]) -> list[dict[str, torch.Tensor]]:
    """One score (K, H, W) for each class."""
    return [
        {"sem_seg": torch.nn.functional.one_hot(_seen(r)[1], NUM_CLASSES).movedim(-1, 0)}
        for r in records
    ]


def segments(records: Sequence[ImageRecord]) -> list[dict[str, tuple[torch.Tensor, list[dict]]]]:
    """Each object as a thing, or those of a class as stuff."""
    outputs = []
    for record in records:
        numbers, kinds, found = _seen(record)
        ids = torch.zeros_like(numbers, dtype=torch.int32)
        listed: list[dict] = []
        for number in found:
            kind = int(kinds[numbers == number].max())
            known = [s["id"] for s in listed if s["category_id"] == kind and kind not in THINGS]
            if not known:
                known = [len(listed) + 1]
                listed.append(
                    dict(id=known[0], isthing=kind in THINGS, category_id=kind, score=0.9)
                )
            ids[numbers == number] = known[0]
        outputs.append({"panoptic_seg": (ids, listed)})
    return outputs
