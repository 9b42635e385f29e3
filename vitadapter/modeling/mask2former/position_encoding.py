"""The sine position embedding of feature maps (DETR, arXiv 2005.12872, appendix A.4)."""

import math

import torch
from torch import Tensor

__all__ = ["sine_position_embedding"]

_TEMPERATURE = 10000
_EPS = 1e-6


def _sine_of(positions: Tensor, channels: int) -> Tensor:
    """Embeds positions (N,) in (0, 2 pi]: sines in even channels, cosines in odd ones."""
    index = torch.arange(channels, dtype=torch.float32, device=positions.device)
    wavelengths = _TEMPERATURE ** (2 * (index // 2) / channels)
    angles = positions[:, None] / wavelengths
    return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1)


def sine_position_embedding(
    hw: tuple[int, int], embed_dim: int, device: torch.device | str | None = None
) -> Tensor:
    """Embeds rows in the first half of the channels and columns in the second.

    Args:
        hw: height h and width w of the map.
        embed_dim: channels C, a multiple of 4.
        device: device of the result.

    Returns:
        (1, h * w, C), always float32, as in the official code.
    """
    height, width = hw
    rows, columns = (
        torch.arange(1, n + 1, dtype=torch.float32, device=device) / (n + _EPS) * (2 * math.pi)
        for n in hw
    )
    y = _sine_of(rows, embed_dim // 2)[:, None].expand(-1, width, -1)
    x = _sine_of(columns, embed_dim // 2)[None].expand(height, -1, -1)
    return torch.cat((y, x), dim=2).view(1, height * width, embed_dim)
