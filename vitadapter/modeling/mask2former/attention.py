"""Multi-head attention with one mask for all heads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MaskedAttention"]


class MaskedAttention(nn.Module):
    """`nn.MultiheadAttention` whose mask is shared by the heads instead of repeated for each.

    Parameters have the names, layout and initial values of torch's module. At 32 heads and the
    896-pixel crops of the official recipes its repeated mask would be 32 times as large.

    Args:
        embed_dim: channels C.
        num_heads: attention heads.

    Raises:
        ValueError: `num_heads` does not divide `embed_dim`.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads != 0:
            raise ValueError(f"num_heads must divide embed_dim, got {num_heads=}, {embed_dim=}")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            query: (B, Q, C).
            key: (B, N, C).
            value: (B, N, C).
            mask: (B, Q, N), True where a query may look; None for everywhere. No row may be all
                False.

        Returns:
            (B, Q, C).
        """
        projected = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip(
                (query, key, value),
                self.in_proj_weight.chunk(3),
                self.in_proj_bias.chunk(3),
                strict=True,
            )
        )  # (B, heads, Q or N, C / heads)
        mask = None if mask is None else mask[:, None]
        x = F.scaled_dot_product_attention(*projected, attn_mask=mask)
        return self.out_proj(x.transpose(1, 2).flatten(2))
