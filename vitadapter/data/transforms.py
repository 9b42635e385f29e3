"""Augmentation policies that Detectron2 lacks."""

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T

__all__ = ["RandomChoice"]


class RandomChoice(T.Augmentation):
    """Draws one of several lists of augmentations, all equally likely, and applies it.

    With the branches `[resize]` and `[resize, crop, resize]` it is the multi-scale policy of
    DETR and Sparse R-CNN that the paper's 3x+MS schedules use.
    """

    def __init__(self, branches: Sequence[Sequence[T.Augmentation | T.Transform]]) -> None:
        """
        Args:
            branches: the lists to draw from; an empty list leaves the image as it is.

        Raises:
            ValueError: there is no branch.
        """
        super().__init__()
        if len(branches) == 0:
            raise ValueError(f"RandomChoice needs at least one branch, got {branches}")
        self.branches = [T.AugmentationList(branch) for branch in branches]

    def __call__(self, aug_input: T.AugInput) -> T.TransformList:
        """Transforms `aug_input` in place by one branch and returns what was done."""
        # The global generator is the one that Detectron2 seeds in each worker.
        drawn = np.random.randint(len(self.branches))  # noqa: NPY002
        return self.branches[drawn](aug_input)
