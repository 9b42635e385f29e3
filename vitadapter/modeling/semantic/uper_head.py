"""The head of UPerNet (arXiv 1807.10221)."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from vitadapter.layers.conv_norm_relu import conv_norm_relu
from vitadapter.layers.sizes import average_cells

from .pixel_head import PixelHead

__all__ = ["PyramidPooling", "UPerHead"]


def _resize_to(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """Pyramid pooling module (arXiv 1612.01105): adds averages over coarse grids to a map.

    Args:
        in_channels: channels of the map.
        channels: channels of each grid's projection and of the output.
        pool_scales: cells per side of the grids.
        norm: norm of the convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        pool_scales: Sequence[int],
        norm: str | Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.pool_scales = tuple(pool_scales)
        self.projections = nn.ModuleList(
            conv_norm_relu(in_channels, channels, 1, norm) for _ in self.pool_scales
        )
        total = in_channels + len(self.pool_scales) * channels
        self.bottleneck = conv_norm_relu(total, channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, channels, h, w)."""
        pooled = [
            _resize_to(project(average_cells(x, scale)), x)
            for scale, project in zip(self.pool_scales, self.projections, strict=True)
        ]
        return self.bottleneck(torch.cat([x, *pooled], dim=1))


class UPerHead(PixelHead):
    """Pyramid pooling on the coarsest map, then a feature pyramid whose levels are fused.

    Args:
        input_shape: names and shapes of the features, read from fine to coarse.
        num_classes: number of classes K.
        channels: channels of every convolution.
        pool_scales: cells per side of the grids of the pyramid pooling.
        norm: norm of the convolutions; see Detectron2's `get_norm`. Batch norm needs more than one
            image in a training batch, because the coarsest pooled grid is one cell.
        dropout, loss_weight, ignore_value: see `PixelHead`.

    Raises:
        ValueError: there are fewer than two features, or a number is out of range.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        norm: str | Callable[[int], nn.Module] = "SyncBN",
        dropout: float = 0.1,
        loss_weight: float = 1.0,
        ignore_value: int = 255,
    ) -> None:
        if len(input_shape) < 2:
            raise ValueError(f"UPerHead needs at least two features, got {list(input_shape)}")
        by_stride = sorted(input_shape.items(), key=lambda item: item[1].stride)
        super().__init__(
            channels=channels,
            num_classes=num_classes,
            common_stride=by_stride[0][1].stride,
            dropout=dropout,
            loss_weight=loss_weight,
            ignore_value=ignore_value,
        )
        self.in_features = [name for name, _ in by_stride]
        widths = [shape.channels for _, shape in by_stride]
        self.ppm = PyramidPooling(widths[-1], channels, pool_scales, norm)
        self.lateral_convs = nn.ModuleList(
            conv_norm_relu(width, channels, 1, norm) for width in widths[:-1]
        )
        self.fpn_convs = nn.ModuleList(
            conv_norm_relu(channels, channels, 3, norm) for _ in widths[:-1]
        )
        self.fpn_bottleneck = conv_norm_relu(len(widths) * channels, channels, 3, norm)

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """See the base class."""
        *finer, coarsest = (features[name] for name in self.in_features)
        levels = [conv(x) for conv, x in zip(self.lateral_convs, finer, strict=True)]
        levels.append(self.ppm(coarsest))
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + _resize_to(levels[i + 1], levels[i])
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)]
        outputs.append(levels[-1])
        finest = outputs[0]
        resized = [finest, *(_resize_to(x, finest) for x in outputs[1:])]
        return self.fpn_bottleneck(torch.cat(resized, dim=1))
