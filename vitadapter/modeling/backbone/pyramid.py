"""What the backbones that turn a plain ViT into a feature pyramid have in common."""

from detectron2.modeling import Backbone

__all__ = ["PyramidBackbone"]


class PyramidBackbone(Backbone):
    """Publishes ``res2 .. res5`` (strides 4, 8, 16, 32) over a net of patch size 16.

    Args:
        net: a plain ViT; the subclass keeps it.

    Raises:
        ValueError: another patch size.
    """

    def __init__(self, net: Backbone) -> None:
        super().__init__()
        if net.patch_size != 16:
            raise ValueError(f"net.patch_size must be 16 pixels, got {net.patch_size}")
        self._out_features = ["res2", "res3", "res4", "res5"]
        self._out_feature_strides = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
        self._out_feature_channels = dict.fromkeys(self._out_features, net.embed_dim)

    @property
    def size_divisibility(self) -> int:
        """Image height and width are padded to a multiple of this, in pixels."""
        return 32

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Detectron2's ``ImageList`` pads batches by these."""
        return {"size_divisibility": self.size_divisibility}
