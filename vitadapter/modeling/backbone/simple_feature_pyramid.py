"""ViTDet's simple feature pyramid for images of any size."""

import torch.nn.functional as F
from detectron2.modeling import SimpleFeaturePyramid as Detectron2SimpleFeaturePyramid
from torch import Tensor

__all__ = ["SimpleFeaturePyramid"]


class SimpleFeaturePyramid(Detectron2SimpleFeaturePyramid):
    """Detectron2's ``SimpleFeaturePyramid``, with images padded to the coarsest stride.

    Detectron2 misspells the key of its padding constraint, so that ``ImageList`` ignores it and
    every image must come in a fixed square size (``square_pad``). That size is padded to here, as
    ``ImageList`` crops without a word what is larger. Same arguments and state dict.
    """

    @property
    def size_divisibility(self) -> int:
        """Image height and width are padded to a multiple of this, in pixels."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Detectron2's ``ImageList`` pads batches by these."""
        return {"size_divisibility": self._size_divisibility}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: images (B, 3, H, W).

        Returns:
            dict: maps (B, C, h, w) by name.

        Raises:
            ValueError: the images do not fit into the square.
        """
        return super().forward(self._in_square(x) if self._square_pad > 0 else x)

    def _in_square(self, x: Tensor) -> Tensor:
        side = -(-self._square_pad // self._size_divisibility) * self._size_divisibility
        height, width = x.shape[-2:]
        if max(height, width) > side:
            raise ValueError(
                f"images must fit into square_pad={self._square_pad} pixels, got a batch of "
                f"{height} x {width}: resize them to less, or set model.backbone.square_pad=0"
            )
        return F.pad(x, (0, side - width, 0, side - height))
