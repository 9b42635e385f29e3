"""Ground truth of an image as a class and a mask for each segment."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["MaskTargets"]


class MaskTargets(NamedTuple):
    """Segments of one image.

    Attributes:
        classes: (N,), int64.
        masks: (N, H, W), bool.
    """

    classes: Tensor
    masks: Tensor
