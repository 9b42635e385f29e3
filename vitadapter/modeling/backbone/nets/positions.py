"""Position embeddings for token grids of another size than they were trained for."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, RotaryEmbeddingDinoV3
from torch import Tensor

from vitadapter.layers.sizes import check_fixed, holds_for_all_sizes

__all__ = [
    "absolute_positions",
    "relative_positions",
    "resize_positions",
    "rotary_positions",
]


def absolute_positions(embedding: Tensor, has_cls_token: bool, hw: tuple[int, int]) -> Tensor:
    """Resizes learnt positions of a square grid (bicubic), as Detectron2's `get_abs_pos`.

    Args:
        embedding: (1, N, C), or (1, 1 + N, C) with a class token first, which is left out.
        has_cls_token: whether there is one.
        hw: the grid (h, w).

    Returns:
        (1, h, w, C).
    """
    embedding = embedding[:, 1:] if has_cls_token else embedding
    side = math.isqrt(embedding.shape[1])
    return resize_positions(embedding.unflatten(1, (side, side)), hw)


def resize_positions(
    grid: Tensor, hw: tuple[int, int], antialias: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """Resizes positions (1, H, W, C) to (1, h, w, C) (bicubic), in `dtype` or their own."""
    if all(holds_for_all_sizes(a == b) for a, b in zip(hw, grid.shape[1:3], strict=True)):
        return grid
    maps = grid.permute(0, 3, 1, 2).to(dtype or grid.dtype)
    maps = F.interpolate(maps, size=hw, mode="bicubic", align_corners=False, antialias=antialias)
    return maps.permute(0, 2, 3, 1).to(grid.dtype)


def relative_positions(table: Tensor, side: int) -> Tensor:
    """Resizes learnt relative positions (linearly), as Detectron2's `get_rel_pos`.

    Args:
        table: (2 * N - 1, C), for the offsets 1 - N .. N - 1 of a side of N tokens.
        side: h, the tokens of the side.

    Returns:
        (h, h, C), for each query and key.
    """
    if not holds_for_all_sizes(table.shape[0] == 2 * side - 1):
        table = F.interpolate(table.t()[None], size=2 * side - 1, mode="linear")[0].t()
    places = torch.arange(side, device=table.device)
    return table[places[:, None] - places + side - 1]


def rotary_positions(
    rope: RotaryEmbeddingCat | RotaryEmbeddingDinoV3, hw: tuple[int, int]
) -> Tensor:
    """Returns the rotary positions of a grid (h, w) in timm's form, which `rope` makes."""
    if not isinstance(rope, RotaryEmbeddingDinoV3):
        return rope.get_embed(shape=list(hw))
    if rope.normalize_coords != "separate":
        check_fixed(f"DINOv3's {rope.normalize_coords} positions", *hw)
        return rope.get_embed(shape=list(hw))
    # timm makes the coordinates on the CPU, from where a GPU has to be waited for, and divides by
    # `float(side)`, which would make the size of the example a constant.
    device = cast(Tensor, rope.periods).device
    y, x = (
        (torch.arange(side, device=device) + 0.5 + rope.grid_offset) / side * 2 - 1 for side in hw
    )
    coordinates = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
    coordinates = rope._apply_coord_augs(coordinates)
    return torch.cat(rope._get_pos_embed_from_coords(coordinates), dim=-1)
