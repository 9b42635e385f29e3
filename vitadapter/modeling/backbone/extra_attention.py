"""One global transformer layer on the coarsest map, before an FPN (official HTC++ models)."""

from collections.abc import Callable

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitadapter.layers.fast import recomputed

from .vit import Attention, Mlp

__all__ = ["ExtraAttention"]


class ExtraAttention(Backbone):
    """Passes the features of a backbone on, one of them through a transformer layer.

    Not in the paper; the official HTC++ models have it between ViT-Adapter and FPN. Without
    position and layer scale; a norm follows the layer.

    Args:
        bottom_up: the backbone, as FPN takes it.
        in_feature: name of the map that goes through the layer.
        num_heads: attention heads; divides the map's channels.
        ffn_ratio: hidden width of the FFN over the map's channels; 0 for no FFN.
        drop_path_rate: stochastic depth of both branches.
        norm_layer: makes a norm for a number of channels.
        use_act_checkpoint: whether to recompute the layer in the backward pass.

    Raises:
        ValueError: a feature that ``bottom_up`` lacks, heads that do not divide its channels, or a
            rate or ratio out of range.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_feature: str = "res5",
        *,
        num_heads: int = 32,
        ffn_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        use_act_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        if in_feature not in shapes:
            raise ValueError(f"in_feature must be one of {list(shapes)}, got {in_feature!r}")
        dim = shapes[in_feature].channels
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"num_heads must divide {in_feature}'s {dim} channels, got {num_heads}"
            )
        if not (0 <= drop_path_rate < 1 and ffn_ratio >= 0):
            raise ValueError(
                "drop_path_rate in [0, 1) and ffn_ratio >= 0 are needed, "
                f"got {drop_path_rate=}, {ffn_ratio=}"
            )
        self.in_feature = in_feature
        self.use_act_checkpoint = use_act_checkpoint
        self.norm1 = norm_layer(dim)
        self.attn = Attention(
            dim,
            num_heads,
            qkv_bias=True,
            use_rel_pos=False,
            rel_pos_zero_init=True,
            input_size=(1, 1),
            window_size=0,
            pad_after_qkv=False,
        )
        self.ffn = None
        if ffn_ratio > 0:
            self.norm2 = norm_layer(dim)
            self.ffn = Mlp(dim, int(dim * ffn_ratio), nn.GELU)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.final_norm = norm_layer(dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        # Last, so that the initialisation above leaves it alone.
        self.bottom_up = bottom_up

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features of images (B, 3, H, W) by name, as the wrapped backbone's."""
        features = self.bottom_up(images)
        return features | {self.in_feature: self.attend(features[self.in_feature])}

    def attend(self, feature: Tensor) -> Tensor:
        """The layer and its norm on a map (B, C, h, w)."""
        x = feature.permute(0, 2, 3, 1)
        if self.use_act_checkpoint and torch.is_grad_enabled():
            x = checkpoint(self._layer, x, use_reentrant=False)
        else:
            x = self._layer(x)
        return x.permute(0, 3, 1, 2)

    def _layer(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(recomputed(self.norm1, x)))
        if self.ffn is not None:
            x = x + self.drop_path(self.ffn(recomputed(self.norm2, x)))
        return self.final_norm(x)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the features, as the wrapped backbone's."""
        return self.bottom_up.output_shape()

    @property
    def size_divisibility(self) -> int:
        """As the wrapped backbone's."""
        return self.bottom_up.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """As the wrapped backbone's."""
        return self.bottom_up.padding_constraints
