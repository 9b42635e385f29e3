"""What nets whose blocks run on token sequences have in common."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.utils import window_partition, window_unpartition
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["PlainNet", "block_window_sizes", "check_net_arguments", "self_attention"]


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


def self_attention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_heads: int,
    hw: tuple[int, int],
    window_size: int,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """Multi-head self-attention without its output projection, global or inside windows.

    Incomplete windows are filled up with zero tokens at the bottom and at the right before the
    projection, as Detectron2 and the official BEiT and Uni-Perceiver do.

    Args:
        x: tokens (B, N, C); inside windows N is h * w.
        weight: joint projection (3C, C) to queries, keys and values.
        bias: its bias (3C,).
        num_heads: attention heads.
        hw: (h, w) of the token grid.
        window_size: side of the windows in tokens; 0 is global attention.
        attn_mask: added to the logits: (heads, tokens, tokens) of a window or of all tokens.

    Returns:
        (B, N, C).
    """
    if window_size == 0:
        qkv = F.linear(x, weight, bias)
    else:
        # A zero token is projected to the bias alone: add that after the padding.
        qkv = F.linear(x, weight).unflatten(1, hw)
        qkv, padded_hw = window_partition(qkv, window_size)
        qkv = qkv.flatten(1, 2) + bias.to(qkv.dtype)
    # (3, B * windows, heads, tokens, head_dim)
    q, k, v = qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    x = x.transpose(1, 2).flatten(2)
    if window_size > 0:
        x = x.unflatten(1, (window_size, window_size))
        x = window_unpartition(x, window_size, padded_hw, hw).flatten(1, 2)
    return x


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
