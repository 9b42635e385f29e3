"""ViTDet's simple feature pyramid for images of any size."""

from detectron2.modeling import SimpleFeaturePyramid as Detectron2SimpleFeaturePyramid

__all__ = ["SimpleFeaturePyramid"]


class SimpleFeaturePyramid(Detectron2SimpleFeaturePyramid):
    """Detectron2's ``SimpleFeaturePyramid``, with images padded to the coarsest stride.

    Detectron2 misspells the key of its padding constraint, so that ``ImageList`` ignores it and
    every image must come in a fixed square size (``square_pad``). Same arguments and state dict.
    """

    @property
    def size_divisibility(self) -> int:
        """Image height and width are padded to a multiple of this, in pixels."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Detectron2's ``ImageList`` pads batches by these."""
        return {"size_divisibility": self._size_divisibility, "square_size": self._square_pad}
