"""Mask2Former's transformer decoder with masked attention (arXiv 2112.01527, section 3.2)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .position_encoding import sine_position_embedding

__all__ = [
    "MaskPrediction",
    "MaskedAttention",
    "MaskedTransformerDecoder",
    "MaskedTransformerDecoderLayer",
    "attention_mask",
]


class MaskPrediction(NamedTuple):
    """A class and a mask for each query.

    Attributes:
        class_logits: (B, Q, K + 1); the last class is "no object".
        mask_logits: (B, Q, h, w) at the stride of the mask features.
    """

    class_logits: Tensor
    mask_logits: Tensor


class MaskedAttention(nn.Module):
    """`nn.MultiheadAttention` with a mask that the heads share instead of one for each head.

    Parameters have the names, layout and initial values of PyTorch's module. With the 32 heads and
    896-pixel crops of the official recipes, its mask would be 32 times as large.

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
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip(
                (query, key, value),
                self.in_proj_weight.chunk(3),
                self.in_proj_bias.chunk(3),
                strict=True,
            )
        )  # (B, heads, Q or N, C / heads)
        mask = None if mask is None else mask[:, None]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class MaskedTransformerDecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward network; each followed by a norm.

    Args:
        embed_dim: channels C.
        num_heads: attention heads.
        ffn_dim: hidden channels of the feed-forward network.
    """

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.cross_attn = MaskedAttention(embed_dim, num_heads)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.self_attn = MaskedAttention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, embed_dim)
        self.norm3 = nn.LayerNorm(embed_dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, queries: Tensor, query_pos: Tensor, memory: Tensor, memory_pos: Tensor, mask: Tensor
    ) -> Tensor:
        """
        Args:
            queries: (B, Q, C).
            query_pos: their position embedding (1, Q, C).
            memory: tokens (B, N, C) of one map.
            memory_pos: their position embedding (1, N, C).
            mask: (B, Q, N), True where a query may look.

        Returns:
            (B, Q, C).
        """
        x = queries
        x = self.norm1(x + self.cross_attn(x + query_pos, memory + memory_pos, memory, mask))
        qk = x + query_pos
        x = self.norm2(x + self.self_attn(qk, qk, x))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class MaskedTransformerDecoder(nn.Module):
    """Queries look at the maps in turn, each only inside its last mask, and predict again.

    Args:
        num_classes: number of classes K, without "no object".
        num_queries: number of queries Q, the maximum number of masks of an image.
        embed_dim: channels C of queries and memories.
        mask_dim: channels of the mask features.
        num_heads: attention heads.
        num_layers: number of decoder layers.
        ffn_dim: hidden channels of their feed-forward networks.
        num_levels: number of memories, which the layers read in turn.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_queries: int = 100,
        embed_dim: int = 256,
        mask_dim: int = 256,
        num_heads: int = 8,
        num_layers: int = 9,
        ffn_dim: int = 2048,
        num_levels: int = 3,
    ) -> None:
        super().__init__()
        sizes = dict(num_classes=num_classes, num_queries=num_queries, num_layers=num_layers)
        if min(sizes.values()) < 1:
            raise ValueError(f"classes, queries and layers must be at least 1, got {sizes}")
        self.num_classes = num_classes
        self.embed_dim = embed_dim
        self.mask_dim = mask_dim
        self.num_levels = num_levels
        self.layers = nn.ModuleList(
            MaskedTransformerDecoderLayer(embed_dim, num_heads, ffn_dim) for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(embed_dim)
        self.query_feat = nn.Embedding(num_queries, embed_dim)
        self.query_embed = nn.Embedding(num_queries, embed_dim)
        self.level_embed = nn.Embedding(num_levels, embed_dim)
        self.class_embed = nn.Linear(embed_dim, num_classes + 1)
        self.mask_embed = nn.Sequential(
            nn.Linear(embed_dim, embed_dim),
            nn.ReLU(),
            nn.Linear(embed_dim, embed_dim),
            nn.ReLU(),
            nn.Linear(embed_dim, mask_dim),
        )

    def forward(self, mask_features: Tensor, memories: Sequence[Tensor]) -> list[MaskPrediction]:
        """
        Args:
            mask_features: (B, mask_dim, h, w).
            memories: maps (B, C, h_l, w_l), from coarse to fine.

        Returns:
            In training, a prediction of the initial queries and of every layer, the final one last;
            otherwise only the final one, since the masks of a large image are large.
        """
        tokens, positions = [], []
        for level, memory in enumerate(memories):
            _, channels, height, width = memory.shape
            embedding = sine_position_embedding((height, width), channels, memory.device)
            positions.append(embedding.to(memory.dtype))
            level_embed = self.level_embed.weight[level]
            tokens.append(memory.flatten(2).transpose(1, 2) + level_embed)  # (B, h_l * w_l, C)
        batch = mask_features.shape[0]  # `len` of a symbolic size is a constant
        queries = self.query_feat.weight.expand(batch, -1, -1)
        query_pos = self.query_embed.weight[None]
        predictions = [self.predict(queries, mask_features)]
        for i, layer in enumerate(self.layers):
            level = i % self.num_levels
            _, _, height, width = memories[level].shape
            mask = attention_mask(predictions[-1].mask_logits, (height, width))
            if not self.training:
                predictions.clear()
            queries = layer(queries, query_pos, tokens[level], positions[level], mask)
            predictions.append(self.predict(queries, mask_features))
        return predictions

    def predict(self, queries: Tensor, mask_features: Tensor) -> MaskPrediction:
        """Predicts from queries (B, Q, C) and mask features (B, mask_dim, h, w)."""
        x = self.decoder_norm(queries)
        masks = self.mask_embed(x) @ mask_features.flatten(2)  # (B, Q, h * w)
        return MaskPrediction(self.class_embed(x), masks.unflatten(2, mask_features.shape[-2:]))


def attention_mask(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Determines where each query may look: inside its mask, or everywhere if that is empty.

    Args:
        mask_logits: (B, Q, h, w).
        size: (height, width) of the map that queries look at.

    Returns:
        (B, Q, height * width), True where a query may look; no gradient flows through it.
    """
    logits = F.interpolate(mask_logits.detach(), size, mode="bilinear", align_corners=False)
    inside = logits.flatten(2) >= 0
    return inside | ~inside.any(dim=-1, keepdim=True)
