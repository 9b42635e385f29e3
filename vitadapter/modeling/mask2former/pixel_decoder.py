"""Mask2Former's pixel decoder: deformable attention over three scales, then a pyramid.

Paper: arXiv 2112.01527, section 3.2.2; its encoder is Deformable DETR's (arXiv 2010.04159).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import Tensor, nn

from vitadapter.layers.conv_norm_relu import conv_norm_relu
from vitadapter.ops import MSDeformAttn, cell_centres

from .position_encoding import sine_position_embedding

__all__ = ["MSDeformAttnEncoderLayer", "MSDeformAttnPixelDecoder", "PixelDecoderOutput"]


class PixelDecoderOutput(NamedTuple):
    """What the transformer decoder reads.

    Attributes:
        mask_features: (B, mask_dim, h, w) at the finest stride; masks are products with them.
        memories: maps (B, C, h_l, w_l) of the encoder's scales, from coarse to fine.
    """

    mask_features: Tensor
    memories: list[Tensor]


class MSDeformAttnEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each followed by a norm.

    Args:
        embed_dim: channels C.
        num_heads: attention heads.
        num_levels: number of scales that are attended to.
        num_points: sampling points per query, head and level.
        ffn_dim: hidden channels of the feed-forward network.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(embed_dim, num_heads, num_levels, num_points)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """
        Args:
            x: tokens (B, N, C) of all levels.
            pos: their position embedding (1, N, C).
            reference_points: their positions (1, N, 1, 2) as (x, y) in [0, 1].
            spatial_shapes: (height, width) of each level.

        Returns:
            (B, N, C).
        """
        x = self.norm1(x + self.self_attn(x + pos, reference_points, x, spatial_shapes))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class MSDeformAttnPixelDecoder(nn.Module):
    """Refines the coarsest maps together and merges the finer ones top-down.

    Args:
        input_shape: names, channels and strides of the features, which are all read.
        embed_dim: channels C, inside and of the outputs.
        mask_dim: channels of the mask features.
        num_heads: attention heads.
        num_points: sampling points per query, head and level.
        num_layers: number of encoder layers.
        ffn_dim: hidden channels of their feed-forward networks.
        num_levels: number of maps that the encoder refines, starting with the coarsest.
        norm: norm of the convolutions; see Detectron2's `get_norm`.

    Raises:
        ValueError: there are not more features than `num_levels`, or `embed_dim` is not a multiple
            of 4, which the position embedding needs.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        embed_dim: int = 256,
        mask_dim: int = 256,
        num_heads: int = 8,
        num_points: int = 4,
        num_layers: int = 6,
        ffn_dim: int = 1024,
        num_levels: int = 3,
        norm: str | Callable[[int], nn.Module] = "GN",
    ) -> None:
        super().__init__()
        if not 0 < num_levels < len(input_shape):
            raise ValueError(
                "0 < num_levels < number of features is needed, since masks are predicted on a "
                f"finer map than the encoder's, got {num_levels=} and {list(input_shape)}"
            )
        if embed_dim < 1 or embed_dim % 4 != 0:
            raise ValueError(f"embed_dim must be a positive multiple of 4, got {embed_dim}")
        from_coarse = sorted(input_shape.items(), key=lambda item: -item[1].stride)
        encoded, finer = from_coarse[:num_levels], from_coarse[num_levels:]
        self.embed_dim = embed_dim
        self.mask_dim = mask_dim
        self.num_levels = num_levels
        self.encoder_features = [name for name, _ in encoded]
        self.finer_features = [name for name, _ in finer]
        self.common_stride = finer[-1][1].stride
        self.input_proj = nn.ModuleList(
            Conv2d(shape.channels, embed_dim, 1, norm=get_norm(norm, embed_dim))
            for _, shape in encoded
        )
        self.level_embed = nn.Embedding(num_levels, embed_dim)
        self.encoder = nn.ModuleList(
            MSDeformAttnEncoderLayer(embed_dim, num_heads, num_levels, num_points, ffn_dim)
            for _ in range(num_layers)
        )
        self.lateral_convs = nn.ModuleList(
            Conv2d(shape.channels, embed_dim, 1, bias=norm == "", norm=get_norm(norm, embed_dim))
            for _, shape in finer
        )
        self.output_convs = nn.ModuleList(
            conv_norm_relu(embed_dim, embed_dim, 3, norm) for _ in finer
        )
        self.mask_features = nn.Conv2d(embed_dim, mask_dim, 1)
        self._reset_convs()

    def _reset_convs(self) -> None:
        for conv in self.input_proj:
            nn.init.xavier_uniform_(conv.get_parameter("weight"))
            nn.init.zeros_(conv.get_parameter("bias"))
        for conv in (*self.lateral_convs, *self.output_convs, self.mask_features):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, features: Mapping[str, Tensor]) -> PixelDecoderOutput:
        """
        Args:
            features: maps (B, C_l, h_l, w_l), by name.

        Returns:
            Mask features and the encoder's maps.
        """
        maps = self._encode(features)
        x = maps[-1]
        for name, lateral, output in zip(
            self.finer_features, self.lateral_convs, self.output_convs, strict=True
        ):
            finer = lateral(features[name])
            size = finer.shape[-2:]
            x = output(finer + F.interpolate(x, size, mode="bilinear", align_corners=False))
        return PixelDecoderOutput(self.mask_features(x), maps)

    def _encode(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Refines the coarsest features (B, C_l, h_l, w_l) to maps (B, C, h_l, w_l)."""
        maps = [
            project(features[name])
            for project, name in zip(self.input_proj, self.encoder_features, strict=True)
        ]
        shapes = [(x.shape[-2], x.shape[-1]) for x in maps]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)  # (B, N, C)
        pos = torch.cat(
            [
                sine_position_embedding(hw, self.embed_dim, tokens.device).to(level.dtype) + level
                for hw, level in zip(shapes, self.level_embed.weight, strict=True)
            ],
            dim=1,
        )
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        points = torch.cat([cell_centres(hw, tokens.device, dtype) for hw in shapes], dim=1)
        for layer in self.encoder:
            tokens = layer(tokens, pos, points, shapes)
        levels = tokens.split([h * w for h, w in shapes], dim=1)
        return [
            level.transpose(1, 2).unflatten(2, hw) for level, hw in zip(levels, shapes, strict=True)
        ]
