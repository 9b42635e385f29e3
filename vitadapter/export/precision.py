"""The precisions that a file may compute in, and how far from the model its answers may be."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

__all__ = ["PRECISIONS", "Tolerance", "name_of", "precision_of", "tolerance_of"]


@dataclass(frozen=True)
class Tolerance:
    """How far the answers of a file may be from those of the model.

    Attributes:
        outputs: largest difference of an output on noise, relative to its largest number.
        answers: mean differences of answers on images, by the names of `differences`.
        points: difference of AP, mIoU or PQ on a data set, in percent.
    """

    outputs: float
    answers: Mapping[str, float]
    points: float


def _answers(
    detections: float, scores: float, boxes: float, masks: float, pixels: float
) -> Mapping[str, float]:
    return {
        "detections": detections,
        "scores": scores,
        "boxes": boxes,
        "masks": masks,
        "classes of pixels": pixels,
        "segments of pixels": 2 * pixels,
    }


# float32 rounds differently in another order, so that a few answers on the edge differ.
_TOLERANCES = {
    torch.float32: Tolerance(1e-3, _answers(0.01, 1e-3, 1e-3, 5e-3, 1e-3), 0.05),
    torch.float16: Tolerance(2e-2, _answers(0.05, 5e-3, 3e-3, 0.02, 5e-3), 0.2),
    torch.bfloat16: Tolerance(0.2, _answers(0.1, 0.03, 0.01, 0.05, 0.03), 1.0),
    torch.int8: Tolerance(0.5, _answers(0.15, 0.05, 0.02, 0.1, 0.05), 1.0),
}
PRECISIONS = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}
"""The precisions by their names in the command."""


def name_of(precision: torch.dtype) -> str:
    """Returns the name of a precision in the command, such as "fp32".

    Raises:
        ValueError: no file can have this precision.
    """
    for name, dtype in PRECISIONS.items():
        if dtype == precision:
            return name
    known = ", ".join(map(str, PRECISIONS.values()))
    raise ValueError(f"the precision must be one of {known}, got {precision}")


def precision_of(name: str) -> torch.dtype:
    """Returns a precision by its name.

    Raises:
        ValueError: there is no such precision.
    """
    if name not in PRECISIONS:
        raise ValueError(f"the precision must be one of {', '.join(PRECISIONS)}, got {name!r}")
    return PRECISIONS[name]


def tolerance_of(precision: torch.dtype) -> Tolerance:
    """Returns how far the answers of a file of this precision may be from the model's."""
    return _TOLERANCES[precision]
