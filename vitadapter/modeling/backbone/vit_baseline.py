"""The plain-ViT baseline of the paper: the outputs of four blocks, resized."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from detectron2.layers import get_norm
from detectron2.modeling import Backbone
from torch import Tensor, nn

from .nets import as_net
from .pyramid import PyramidBackbone, block_outputs, pad_images

__all__ = ["ViTBaseline"]


class ViTBaseline(PyramidBackbone):
    """A plain ViT whose resized block outputs are `res2 .. res5` ("ViT" in table 1 of the paper).

    Each of four block outputs is normalised and resized to its stride: 4 by two deconvolutions, 8
    by one, 16 as it is, 32 by max-pooling (as in arXiv 2111.11429).

    Args:
        net: the plain ViT, with patch size 16 (see `PlainNet` for what it needs).
        block_indexes: the four blocks whose outputs are used, for strides 4, 8, 16 and 32, or one
            block for all four. None for the last block of each quarter of the net.
        norm_layer: makes the norm of each block output; None for none, as in the official BEiT
            baseline.
        norm: norm of the deconvolutions for stride 4: Detectron2's norm name or a callable. The
            official BEiT baseline has "SyncBN".

    Raises:
        TypeError: `net` is not a plain ViT.
        ValueError: the patch size is not 16, or block indexes are outside the net or out of order.
    """

    def __init__(
        self,
        net: Backbone,
        *,
        block_indexes: Sequence[int] | None = None,
        norm_layer: Callable[[int], nn.Module] | None = partial(nn.LayerNorm, eps=1e-6),
        norm: str | Callable[[int], nn.Module] = "GN",
    ) -> None:
        net = as_net(net)
        super().__init__(net)
        if block_indexes is None:
            block_indexes = [(i + 1) * net.depth // 4 - 1 for i in range(4)]
        self.block_indexes = _check_block_indexes(block_indexes, net.depth)
        dim = net.embed_dim
        for level in range(1, 5):
            self.add_module(
                f"norm{level}", nn.Identity() if norm_layer is None else norm_layer(dim)
            )
        self.up1 = nn.Sequential(
            nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2),
            get_norm(norm, dim) or nn.Identity(),
            nn.GELU(),
            nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2),
        )
        self.up2 = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2)
        self.net = net

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Computes multi-scale features; see `ViTAdapter.forward`."""
        images = pad_images(images, self.size_divisibility, self.in_chans)
        return self._outputs(block_outputs(self.net, images, self.block_indexes))

    def _outputs(self, features: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Makes maps of the tokens (B, h, w, C) that leave the blocks."""
        f1, f2, f3, f4 = (
            norm(features[index]).permute(0, 3, 1, 2)
            for norm, index in zip(
                (self.norm1, self.norm2, self.norm3, self.norm4), self.block_indexes, strict=True
            )
        )
        return {"res2": self.up1(f1), "res3": self.up2(f2), "res4": f3, "res5": self.pool(f4)}


def _check_block_indexes(indexes: Sequence[int], depth: int) -> tuple[int, ...]:
    checked = tuple(indexes) * 4 if len(indexes) == 1 else tuple(indexes)
    if (
        len(checked) != 4
        or list(checked) != sorted(checked)
        or not all(0 <= i < depth for i in checked)
    ):
        raise ValueError(
            f"block_indexes must be one or four ascending block indexes in 0..{depth - 1}, "
            f"got {list(indexes)}"
        )
    return checked
