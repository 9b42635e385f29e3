"""Window attention for the blocks of timm's plain ViTs, with prefix tokens and rotary positions."""

from collections.abc import Iterator
from typing import TypeAlias

import torch
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitadapter.layers.sizes import check_fixed

__all__ = ["WINDOWED_BLOCKS", "WindowedBlock", "run_block_in_windows"]

# Blocks whose residual branches are written out below.
WINDOWED_BLOCKS = (Block, EvaBlock)
WindowedBlock: TypeAlias = Block | EvaBlock


def run_block_in_windows(
    block: WindowedBlock,
    tokens: Tensor,
    hw: tuple[int, int],
    window_size: int,
    rope: Tensor | None = None,
) -> Tensor:
    """Runs one of timm's pre-norm blocks with attention inside windows.

    Norms, MLP and stochastic depth act on whole images, as in ViTDet; only attention has windows:

    - The windows at the bottom and at the right are smaller if the grid ends there. There is no
      padding and no mask; the result is the same as with masked padding.
    - Every window attends to its own tokens and to a copy of all prefix tokens. A prefix token's
      update is the mean of its copies' updates, weighted by the number of tokens of the windows.
      So class and register tokens still collect information from the whole image and pass it on to
      all windows, at linear cost and with timm's unchanged attention.
    - Rotary embeddings are those of the tokens' positions in the image, not in the window.

    With a window that covers the grid, the result is that of the block itself.

    Args:
        block: one of `WINDOWED_BLOCKS`.
        tokens: (B, P + h * w, C), prefix tokens first.
        hw: the grid (h, w).
        window_size: side of the windows in tokens.
        rope: rotary embedding (h * w, D) or, if it differs between heads, (heads, h * w, D).

    Returns:
        Tokens of the same shape.
    """
    attended = _attend_in_windows(block.attn, block.norm1(tokens), hw, window_size, rope)
    tokens = tokens + block.drop_path1(_layer_scale(block, 1, attended))
    return tokens + block.drop_path2(_layer_scale(block, 2, block.mlp(block.norm2(tokens))))


def _layer_scale(block: WindowedBlock, branch: int, x: Tensor) -> Tensor:
    if isinstance(block, EvaBlock):
        gamma = block.gamma_1 if branch == 1 else block.gamma_2
        return x if gamma is None else gamma * x
    return (block.ls1 if branch == 1 else block.ls2)(x)


def _attend_in_windows(
    attn: nn.Module, tokens: Tensor, hw: tuple[int, int], window_size: int, rope: Tensor | None
) -> Tensor:
    """Applies timm's attention to (B, P + h * w, C) in windows; returns the same shape."""
    h, w = hw
    prefix, x = tokens.split([tokens.shape[1] - h * w, h * w], dim=1)
    x = x.unflatten(1, hw)
    rope = None if rope is None else rope.unflatten(-2, hw)
    bands, prefix_update = [], torch.zeros_like(prefix)
    for rows, window_h in _bands(h, window_size):
        band = []
        for columns, window_w in _bands(w, window_size):
            region = x[:, rows, columns]  # (B, rows, columns, C)
            window = (window_h, window_w)
            copies, region_update = _attend(
                attn,
                prefix,
                _partition(region, window),
                None if rope is None else _partition(rope[..., rows, columns, :], window),
            )
            band.append(_unpartition(region_update, region.shape[1:3], window))
            share = region.shape[1] * region.shape[2] / (h * w)
            prefix_update = prefix_update + share * copies.mean(dim=1)
        bands.append(torch.cat(band, dim=2))
    return torch.cat([prefix_update, torch.cat(bands, dim=1).flatten(1, 2)], dim=1)


def _bands(size: int, window_size: int) -> Iterator[tuple[slice, int]]:
    """Yields slices of `size` tokens and their window sides: whole windows, then the rest."""
    check_fixed("TimmViT with windows", size)
    whole = size - size % window_size
    if whole > 0:
        yield slice(0, whole), window_size
    if whole < size:
        yield slice(whole, size), size - whole


def _attend(
    attn: nn.Module, prefix: Tensor, windows: Tensor, rope: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Applies attention to n windows of one size.

    Args:
        attn: timm's attention.
        prefix: (B, P, C).
        windows: (B, n, L, C).
        rope: (n, L, D) or (heads, n, L, D).

    Returns:
        Prefix copies (B, n, P, C) and windows (B, n, L, C) after the attention.
    """
    batch, n, length = windows.shape[:3]
    copies = prefix.unsqueeze(1).expand(-1, n, -1, -1)
    sequences = torch.cat([copies, windows], dim=2).flatten(0, 1)  # (B * n, P + L, C)
    if rope is None:
        attended = attn(sequences)
    else:
        per_window = rope.unsqueeze(1) if rope.dim() == 3 else rope.transpose(0, 1)
        # (B * n, 1 or heads, L, D)
        attended = attn(sequences, rope=per_window.repeat(batch, 1, 1, 1))
    attended_copies, attended_windows = attended.unflatten(0, (batch, n)).split(
        [prefix.shape[1], length], dim=2
    )
    return attended_copies, attended_windows


def _partition(grid: Tensor, window: tuple[int, int]) -> Tensor:
    """Splits (..., h, w, C) into n whole windows of L tokens (..., n, L, C), in row-major order."""
    grid = grid.unflatten(-2, (-1, window[1])).unflatten(-4, (-1, window[0]))
    # (..., vertical windows, window height, horizontal windows, window width, C)
    return grid.transpose(-4, -3).flatten(-3, -2).flatten(-4, -3)


def _unpartition(windows: Tensor, hw: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Joins windows (B, n, L, C) to a grid (B, h, w, C)."""
    grid = windows.unflatten(2, window).unflatten(1, (hw[0] // window[0], hw[1] // window[1]))
    return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)
