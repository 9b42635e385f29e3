"""Necks, which stand between a backbone and the heads of a detector, besides Detectron2's FPN."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import Backbone
from detectron2.modeling import SimpleFeaturePyramid as Detectron2SimpleFeaturePyramid
from fvcore.nn import weight_init
from timm.layers import DropPath
from torch import Tensor, nn

from vitadapter.layers.fast import (
    ActCheckpoint,
    check_act_checkpoint,
    recomputed,
    run_with_checkpoint,
)

from .nets.plain_net import Mlp
from .nets.vit import Attention
from .pyramid import PyramidBackbone

__all__ = [
    "ChannelMapper",
    "ExtraAttention",
    "LastLevelConvs",
    "LastLevelMaxPool2x2",
    "SimpleFeaturePyramid",
]


class LastLevelConvs(nn.Module):
    """A `top_block` for Detectron2's FPN, which makes P6 and P7 by strided convolutions.

    Unlike in Detectron2's `LastLevelP6P7`, there is no ReLU before P7. Parameter names are the
    same.

    Args:
        in_channels: channels of `in_feature`.
        out_channels: channels of both levels.
        in_feature: name of an output of FPN, or of its bottom-up network.
    """

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "p5") -> None:
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, kernel_size=3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            weight_init.c2_xavier_fill(conv)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B, in_channels, H, W) to P6 and P7, each half the size of the level before."""
        p6 = self.p6(x)
        return [p6, self.p7(p6)]


class LastLevelMaxPool2x2(nn.Module):
    """A `top_block` for `FPN` and `ChannelMapper`, which makes a level by 2x2 max-pooling.

    Detectron2's `LastLevelMaxPool` takes every second value instead. If the number of rows or
    columns is odd, the last one is left out, unless it is the only one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B, C, h, w) to (B, C, h // 2, w // 2), at least 1 x 1."""
        kernel = (min(2, x.shape[2]), min(2, x.shape[3]))
        return [F.max_pool2d(x, kernel, stride=2)]


class TopBlock(Protocol):
    """A module that makes further levels of a feature pyramid."""

    num_levels: int
    in_feature: str

    def __call__(self, x: Tensor) -> list[Tensor]: ...


class _Neck(Backbone):
    """A neck, which pads images like the backbone that it wraps."""

    bottom_up: Backbone

    @property
    def size_divisibility(self) -> int:
        """That of the wrapped backbone."""
        return self.bottom_up.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """That of the wrapped backbone."""
        return self.bottom_up.padding_constraints


class ChannelMapper(_Neck):
    """Maps each feature of a backbone to the same number of channels by a 1x1 convolution and a
    ReLU.

    It can replace `FPN`: the outputs are also `p2, p3, ...` by stride, and it takes a `top_block`.

    Args:
        bottom_up: the backbone, as for FPN.
        in_features: names of its features, from high to low resolution.
        out_channels: channels of all outputs.
        norm: Detectron2's norm name or a callable; "" for a bias instead of a norm.
        top_block: makes further levels from the output `top_block.in_feature`, as in FPN.

    Raises:
        ValueError: there is no feature or channel, or `bottom_up` does not have a feature.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int = 256,
        norm: str | Callable[[int], nn.Module] = "",
        top_block: TopBlock | None = None,
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        if not in_features or not set(in_features) <= set(shapes) or out_channels < 1:
            raise ValueError(
                f"in_features must be some of {list(shapes)} and out_channels >= 1, "
                f"got {list(in_features)} and {out_channels}"
            )
        self.in_features = tuple(in_features)
        self.convs = nn.ModuleList(
            Conv2d(
                shapes[name].channels,
                out_channels,
                kernel_size=1,
                bias=norm == "",
                norm=get_norm(norm, out_channels),
                activation=F.relu,
            )
            for name in self.in_features
        )
        for conv in self.convs:
            weight_init.c2_xavier_fill(conv)
        self.top_block = top_block
        strides = [shapes[name].stride for name in self.in_features]
        num_extra = 0 if top_block is None else top_block.num_levels
        strides += [strides[-1] * 2 ** (level + 1) for level in range(num_extra)]
        self._out_feature_strides = {f"p{int(math.log2(stride))}": stride for stride in strides}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self.bottom_up = bottom_up

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Computes the features (B, out_channels, h, w) of images (B, 3, H, W), by name."""
        features = self.bottom_up(images)
        maps = [
            conv(features[name]) for name, conv in zip(self.in_features, self.convs, strict=True)
        ]
        if self.top_block is not None:
            maps += self.top_block(maps[self._out_features.index(self.top_block.in_feature)])
        return dict(zip(self._out_features, maps, strict=True))


class ExtraAttention(_Neck):
    """Passes the features of a backbone on, one of them through a transformer layer and a norm.

    It is not in the paper, but the official HTC++ models have it between ViT-Adapter and FPN. The
    layer has no position embedding and no layer scale.

    Args:
        bottom_up: the backbone, as for FPN.
        in_feature: name of the feature that goes through the layer.
        num_heads: attention heads; divides the feature's channels.
        ffn_ratio: hidden width of the FFN, relative to the channels; 0 for no FFN.
        drop_path_rate: stochastic depth of both branches.
        norm_layer: makes a norm for a given number of channels.
        use_act_checkpoint: as of `ViT`, for the layer.

    Raises:
        ValueError: `bottom_up` does not have the feature, `num_heads` does not divide its channels,
            or a rate or ratio is out of range.
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
        use_act_checkpoint: ActCheckpoint = False,
    ) -> None:
        super().__init__()
        check_act_checkpoint(use_act_checkpoint)
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
        """Computes the features of images (B, 3, H, W), by the names of the wrapped backbone."""
        features = self.bottom_up(images)
        return features | {self.in_feature: self.attend(features[self.in_feature])}

    def attend(self, feature: Tensor) -> Tensor:
        """Applies the layer and its norm to a map (B, C, h, w)."""
        hw = (feature.shape[2], feature.shape[3])
        x = feature.permute(0, 2, 3, 1).flatten(1, 2)
        x = run_with_checkpoint(self.use_act_checkpoint, self._layer, x, hw)
        return x.unflatten(1, hw).permute(0, 3, 1, 2)

    def _layer(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """Maps tokens (B, h * w, C) to tokens of the same shape."""
        x = x + self.drop_path(self.attn(recomputed(self.norm1, x), hw))
        if self.ffn is not None:
            x = x + self.drop_path(self.ffn(recomputed(self.norm2, x)))
        return self.final_norm(x)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the features: those of the wrapped backbone."""
        return self.bottom_up.output_shape()


class SimpleFeaturePyramid(Detectron2SimpleFeaturePyramid):
    """Detectron2's `SimpleFeaturePyramid`, with images padded to the coarsest stride.

    Detectron2 misspells the key of its padding constraint, so that `ImageList` ignores it and
    every image must have a fixed square size (`square_pad`). Here, images are padded to that size,
    and larger ones refused, which `ImageList` would crop. Arguments and state dict are the same.
    """

    @property
    def size_divisibility(self) -> int:
        """Image height and width are padded to a multiple of this, in pixels."""
        return self._size_divisibility

    padding_constraints = PyramidBackbone.padding_constraints

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: images (B, 3, H, W).

        Returns:
            Maps (B, C, h, w), by name.

        Raises:
            ValueError: the images do not fit into the square.
        """
        return super().forward(self._pad_to_square(x) if self._square_pad > 0 else x)

    def _pad_to_square(self, x: Tensor) -> Tensor:
        side = -(-self._square_pad // self._size_divisibility) * self._size_divisibility
        height, width = x.shape[-2:]
        if max(height, width) > side:
            raise ValueError(
                f"images must fit into square_pad={self._square_pad} pixels, got a batch of "
                f"{height} x {width}: resize them to less, or set model.backbone.square_pad=0"
            )
        return F.pad(x, (0, side - width, 0, side - height))
