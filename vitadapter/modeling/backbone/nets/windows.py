"""Attention inside the windows of a token grid, as ViT, BEiT and Uni-Perceiver have it."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from detectron2.modeling.backbone.utils import window_partition, window_unpartition
from torch import Tensor, nn

from vitadapter.layers.fast import Linear, attend, is_plain

__all__ = ["attend_in_windows", "block_window_sizes", "check_block_indexes", "project_padded"]


def check_block_indexes(name: str, indexes: Sequence[int], depth: int) -> None:
    """Raises ValueError unless the argument ``name`` holds different blocks of a net."""
    if len(set(indexes)) != len(indexes) or not set(indexes) <= set(range(depth)):
        raise ValueError(f"{name} must be distinct and lie in 0..{depth - 1}, got {list(indexes)}")


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
        indexes: ``window_block_indexes``, the blocks that attend inside windows.
        global_window_size: of all other blocks.

    Raises:
        ValueError: blocks that the net does not have, a window without a token, or sizes that do
            not fit the indexes.
    """
    check_block_indexes("window_block_indexes", indexes, depth)
    one_for_all = isinstance(window_size, int)
    sizes = [window_size] * len(indexes) if one_for_all else list(window_size)
    negative = global_window_size < 0 or (one_for_all and window_size < 0)
    if len(sizes) != len(indexes) or negative or any(size < 1 for size in sizes):
        raise ValueError(
            "window_size must be at least 1 token, one for all or one for each block of "
            "window_block_indexes, and global_window_size at least 0, "
            f"got {window_size}, {list(indexes)} and {global_window_size}"
        )
    windows = [global_window_size] * depth
    for index, size in zip(indexes, sizes, strict=True):
        windows[index] = size
    return windows


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
    x = attend(q, k, v, bias).transpose(1, 2).reshape(n, height, width, -1)
    return x if window_size == 0 else window_unpartition(x, window_size, padded_hw, hw)
