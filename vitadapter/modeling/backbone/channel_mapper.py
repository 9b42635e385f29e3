"""A neck without a top-down path (the official "no FPN" model)."""

import math
from collections.abc import Callable, Sequence

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import Backbone
from torch import Tensor, nn

__all__ = ["ChannelMapper", "LastLevelMaxPool2x2"]


class LastLevelMaxPool2x2(nn.Module):
    """A further level by 2x2 max-pooling, for the ``top_block`` of ``FPN`` and ``ChannelMapper``.

    Detectron2's ``LastLevelMaxPool`` takes every second value instead. An odd last row or column
    is left out, a single one is kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        """A map (B, C, h, w) to one of (B, C, h // 2, w // 2), at least 1 x 1."""
        kernel = (min(2, x.shape[2]), min(2, x.shape[3]))
        return [F.max_pool2d(x, kernel, stride=2)]


class ChannelMapper(Backbone):
    """Brings each feature of a backbone to the same channels: 1x1 convolution and ReLU.

    A drop-in for ``FPN``: same outputs ``p2, p3, ...`` by stride, same ``top_block``.

    Args:
        bottom_up: the backbone, as FPN takes it.
        in_features: names of its maps, from high to low resolution.
        out_channels: channels of all outputs.
        norm: Detectron2's norm name or a callable; "" for none, with a bias instead.
        top_block: makes further levels of the output ``top_block.in_feature``, as in FPN.

    Raises:
        ValueError: no feature, one that ``bottom_up`` lacks, or no channel.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int = 256,
        norm: str | Callable[[int], nn.Module] = "",
        top_block: nn.Module | None = None,
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
        """Features of images (B, 3, H, W): ``p<log2 stride>`` to (B, out_channels, h, w)."""
        features = self.bottom_up(images)
        maps = [
            conv(features[name]) for name, conv in zip(self.in_features, self.convs, strict=True)
        ]
        if self.top_block is not None:
            maps += self.top_block(maps[self._out_features.index(self.top_block.in_feature)])
        return dict(zip(self._out_features, maps, strict=True))

    @property
    def size_divisibility(self) -> int:
        """As the wrapped backbone's."""
        return self.bottom_up.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """As the wrapped backbone's."""
        return self.bottom_up.padding_constraints
