"""Outputs of blocks of a plain ViT as they are, for heads that make no use of a pyramid."""

from collections.abc import Sequence

from detectron2.modeling import Backbone
from torch import Tensor

from .nets import as_net
from .nets.plain_net import check_block_indexes
from .pyramid import PyramidBackbone, block_outputs, pad_images

__all__ = ["ViTFeatures"]


class ViTFeatures(PyramidBackbone):
    """A plain ViT whose block outputs, all of stride 16, are the features "block9", "block14", ....

    SETR (arXiv 2012.15840) reads these.

    Args:
        net: the plain ViT, with patch size 16 (see `PlainNet` for what it needs).
        block_indexes: the blocks whose outputs are features.

    Raises:
        TypeError: `net` is not a plain ViT.
        ValueError: the patch size is not 16, or block indexes are outside the net or not distinct.
    """

    def __init__(self, net: Backbone, *, block_indexes: Sequence[int]) -> None:
        net = as_net(net)
        super().__init__(net)
        check_block_indexes("block_indexes", block_indexes, net.depth)
        self.block_indexes = tuple(block_indexes)
        self._out_features = [f"block{index}" for index in block_indexes]
        self._out_feature_strides = dict.fromkeys(self._out_features, net.patch_size)
        self._out_feature_channels = dict.fromkeys(self._out_features, net.embed_dim)
        self.net = net

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps images (B, 3, H, W), padded to multiples of 32, to (B, C, h, w) by name."""
        images = pad_images(images, self.size_divisibility, self.in_chans)
        outputs = block_outputs(self.net, images, self.block_indexes)
        return {f"block{i}": outputs[i].permute(0, 3, 1, 2) for i in self.block_indexes}
