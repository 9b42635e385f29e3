"""What nets whose blocks run on token sequences have in common."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.utils import window_partition, window_unpartition
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitadapter.layers.fast import Linear, is_plain

__all__ = [
    "PlainNet",
    "attend_in_windows",
    "block_window_sizes",
    "check_net_arguments",
    "project_padded",
]


class PlainNet(Backbone):
    """A net (see ``ViT`` for the contract) whose ``blocks`` are called ``block(tokens, (h, w))``.

    Subclasses make ``blocks``, which take and return tokens (B, P + h * w, C), prefix tokens
    first, and ``embed``.

    Args:
        embed_dim: channels C of the tokens.
        depth: number of blocks.
        patch_size: side of a patch in pixels.
        use_act_checkpoint: whether to recompute each block in the backward pass.
        out_feature: name of the output of ``forward``.
    """

    blocks: nn.ModuleList

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        patch_size: int,
        use_act_checkpoint: bool,
        out_feature: str,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.depth = depth
        self.patch_size = patch_size
        self.use_act_checkpoint = use_act_checkpoint
        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: embed_dim}
        self._out_feature_strides = {out_feature: patch_size}

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) to tokens (B, h, w, C) and prefix tokens (B, P, C)."""

    def forward_blocks(
        self, x: Tensor, prefix: Tensor, start: int, stop: int
    ) -> tuple[Tensor, Tensor]:
        """Runs blocks ``start`` to ``stop - 1``.

        Args:
            x: tokens (B, h, w, C).
            prefix: prefix tokens (B, P, C), P may be 0.
            start: first block.
            stop: the block behind the last.

        Returns:
            x and prefix after the blocks.
        """
        hw, num_prefix = x.shape[1:3], prefix.shape[1]
        tokens = x.flatten(1, 2)
        if num_prefix > 0:
            tokens = torch.cat([prefix, tokens], dim=1)
        for block in self.blocks[start:stop]:
            if self.use_act_checkpoint and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, hw, use_reentrant=False)
            else:
                tokens = block(tokens, hw)
        if num_prefix == 0:
            return tokens.unflatten(1, hw), prefix
        prefix, tokens = tokens.split([num_prefix, tokens.shape[1] - num_prefix], dim=1)
        return tokens.contiguous().unflatten(1, hw), prefix

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) to ``{out_feature: (B, C, H / patch_size, W / patch_size)}``."""
        x, prefix = self.embed(x)
        x, _ = self.forward_blocks(x, prefix, 0, self.depth)
        return {self._out_features[0]: x.permute(0, 3, 1, 2)}


def project_padded(x: Tensor, layer: nn.Module, hw: tuple[int, int], window_size: int) -> Tensor:
    """Projects the tokens of a grid, filled up with zero tokens to whole windows.

    The zeros lie at the bottom and at the right, as Detectron2 and the official BEiT and
    Uni-Perceiver put them.

    Args:
        x: tokens (B, h, w, C) or (B, h * w, C).
        layer: the projection, (..., C) to (..., D).
        hw: the grid (h, w).
        window_size: side of the windows in tokens; 0 for none.

    Returns:
        (B, H, W, D), H and W multiples of ``window_size``.
    """
    bottom, right = (-side % window_size if window_size > 0 else 0 for side in hw)
    padding = (0, 0, 0, right, 0, bottom)
    if any(padding) and not is_plain(layer, nn.Linear, Linear):
        return layer(F.pad(x.view(x.shape[0], *hw, -1), padding))
    projected = layer(x).view(x.shape[0], *hw, -1)
    if not any(padding):
        return projected
    # A zero token is projected to the bias: only tokens that exist went through the product.
    projected = F.pad(projected, padding)
    if layer.bias is None:
        return projected
    outside = F.pad(projected.new_zeros(*hw, 1), padding, value=1.0)
    return projected + outside * layer.bias.to(projected.dtype)


def attend_in_windows(
    qkv: Tensor,
    num_heads: int,
    hw: tuple[int, int],
    window_size: int,
    logit_bias: Callable[[Tensor, tuple[int, int]], Tensor] | None = None,
) -> Tensor:
    """Multi-head self-attention between its projections, inside the windows of a token grid.

    Args:
        qkv: queries, keys and values (B, H, W, 3C) of a grid that is filled up to whole windows, or
            is here with zeros.
        num_heads: attention heads.
        hw: the grid (h, w) without what fills it up.
        window_size: side of the windows in tokens; 0 for one window of the whole grid.
        logit_bias: makes what is added to the logits, (N or 1, heads, L, L), of the queries
            (N, heads, L, head_dim) and the size (height, width) of a window of L tokens.

    Returns:
        (B, h, w, C).
    """
    if window_size > 0:
        qkv, padded_hw = window_partition(qkv, window_size)
    n, height, width, _ = qkv.shape
    # (3, N, heads, L, head_dim)
    q, k, v = qkv.view(n, height * width, 3, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    bias = None if logit_bias is None else logit_bias(q, (height, width))
    x = (
        F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        .transpose(1, 2)
        .reshape(n, height, width, -1)
    )
    return x if window_size == 0 else window_unpartition(x, window_size, padded_hw, hw)


def check_net_arguments(
    sizes: Mapping[str, float],
    embed_dim: int,
    num_heads: int,
    drop_path_rate: float,
    window_block_indexes: Sequence[int],
    depth: int,
) -> None:
    """Refuses arguments that no net can have.

    Args:
        sizes: those that must be positive, by name.
        embed_dim: must be a multiple of ``num_heads``.
        num_heads: attention heads.
        drop_path_rate: must lie in [0, 1).
        window_block_indexes: must be distinct indexes of blocks.
        depth: number of blocks.

    Raises:
        ValueError: one of these does not hold.
    """
    wrong = {name: size for name, size in sizes.items() if not size > 0}
    if wrong:
        raise ValueError(f"{', '.join(sizes)} must be positive, got {wrong}")
    if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
        raise ValueError(f"num_heads must divide {embed_dim=}, got {num_heads=}")
    if depth < 1 or not 0 <= drop_path_rate < 1:
        raise ValueError(
            "depth >= 1 and drop_path_rate in [0, 1) are needed, "
            f"got {depth=} and {drop_path_rate=}"
        )
    indexes = list(window_block_indexes)
    if len(set(indexes)) != len(indexes) or not set(indexes) <= set(range(depth)):
        raise ValueError(
            f"window_block_indexes must be distinct and lie in 0..{depth - 1} ({depth=}), "
            f"got {indexes}"
        )


def block_window_sizes(
    depth: int,
    window_size: int | Sequence[int],
    indexes: Sequence[int],
    global_window_size: int = 0,
) -> list[int]:
    """Side of each block's attention windows in tokens; 0 for a global block.

    Args:
        depth: number of blocks.
        window_size: of the blocks ``indexes``, one for all or one for each.
        indexes: blocks that attend inside windows; they exist.
        global_window_size: of all other blocks.

    Raises:
        ValueError: a window without a token, or sizes that do not fit the indexes.
    """
    one_for_all = isinstance(window_size, int)
    sizes = [window_size] * len(indexes) if one_for_all else list(window_size)
    negative = global_window_size < 0 or (one_for_all and window_size < 0)
    if len(sizes) != len(indexes) or negative or any(size < 1 for size in sizes):
        raise ValueError(
            "window_size must be at least 1 token (0 if no block has windows), one for all or one "
            "for each block of window_block_indexes, and global_window_size at least 0, "
            f"got {window_size}, {list(indexes)} and {global_window_size}"
        )
    windows = [global_window_size] * depth
    for index, size in zip(indexes, sizes, strict=True):
        windows[index] = size
    return windows
