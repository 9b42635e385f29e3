"""What the backbones that make a feature pyramid from a plain ViT have in common."""

from collections.abc import Iterable

import torch.nn.functional as F
from detectron2.modeling import Backbone
from torch import Tensor

from vitadapter.layers.sizes import holds_for_all_sizes, padding_to

__all__ = ["PyramidBackbone", "block_outputs", "channels_of", "pad_images"]


class PyramidBackbone(Backbone):
    """A backbone with outputs `res2 .. res5` (strides 4, 8, 16, 32) around a net of patch size 16.

    Args:
        net: a plain ViT, which the subclass keeps.

    Attributes:
        in_chans: channels of the images, which are those of the net.

    Raises:
        ValueError: wrong patch size.
    """

    def __init__(self, net: Backbone) -> None:
        super().__init__()
        if net.patch_size != 16:
            raise ValueError(f"net.patch_size must be 16 pixels, got {net.patch_size}")
        self.in_chans = channels_of(net)
        self._out_features = ["res2", "res3", "res4", "res5"]
        self._out_feature_strides = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
        self._out_feature_channels = dict.fromkeys(self._out_features, net.embed_dim)

    @property
    def size_divisibility(self) -> int:
        """Image height and width are padded to a multiple of this, in pixels."""
        return 32

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Detectron2's `ImageList` pads batches by these rules."""
        return {"size_divisibility": self.size_divisibility}


def channels_of(net: Backbone) -> int:
    """The channels of the images of a net; 3 for one of others that does not say."""
    return getattr(net, "in_chans", 3)


def pad_images(images: Tensor, multiple: int, channels: int) -> Tensor:
    """Pads images with zeros at the bottom and at the right, as Detectron2 pads batches.

    Args:
        images: (B, C, H, W), normalised, so that 0 is the mean colour.
        multiple: height and width are padded to a multiple of this, in pixels.
        channels: C.

    Raises:
        ValueError: wrong shape, or no pixel.
    """
    if images.dim() != 4 or images.shape[1] != channels or 0 in images.shape[2:]:
        raise ValueError(
            f"images must be (B, {channels}, H, W) with H and W at least 1, got "
            f"{tuple(images.shape)}"
        )
    bottom, right = (padding_to(size, multiple) for size in images.shape[2:])
    if holds_for_all_sizes(bottom == 0) and holds_for_all_sizes(right == 0):
        return images
    return F.pad(images, (0, right, 0, bottom))


def block_outputs(net: Backbone, images: Tensor, indexes: Iterable[int]) -> dict[int, Tensor]:
    """Runs a net as far as it is needed.

    Args:
        net: see `PlainNet`.
        images: (B, 3, H, W), H and W multiples of the patch size.
        indexes: blocks of the net.

    Returns:
        Tokens (B, h, w, C) that leave the blocks.
    """
    x, prefix = net.embed(images)
    outputs, start = {}, 0
    for index in sorted(set(indexes)):
        x, prefix = net.forward_blocks(x, prefix, start, index + 1)
        outputs[index], start = x, index + 1
    return outputs
