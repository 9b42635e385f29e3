"""The layer decay of the official Mask2Former recipes for semantic segmentation."""

import re

from .param_groups import LayerDecay

__all__ = ["Mask2FormerLayerDecay"]

_HEAD = re.compile(
    r"(?:^|\.)predictor\.(?:query_feat|query_embed|level_embed|class_embed|mask_embed)\."
)


class Mask2FormerLayerDecay(LayerDecay):
    """Layer decay in which the head's embeddings learn as slowly as the net's.

    The official segmentation code puts every parameter whose name contains that of a class, mask,
    level or query embedding into layer 0, although these are new and not pre-trained. For rate 0.9
    and 24 layers, their learning rate is 0.0718 times the head's. This looks unintended, but the
    published results were trained with it. `LayerDecay` gives them the head's rate, as the official
    panoptic recipe does.

    Args:
        rate: in (0, 1].
        num_layers: number of blocks of the net.

    Raises:
        ValueError: `rate` is outside (0, 1], or `num_layers` is less than 1.
    """

    def __call__(self, name: str) -> float:
        """Returns the learning-rate factor of the parameter with this dotted name.

        Raises:
            ValueError: the name belongs to a block beyond `num_layers`.
        """
        if _HEAD.search(name):
            return self.rate ** (self.num_layers + 1)
        return super().__call__(name)
