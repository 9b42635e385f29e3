"""The head of SETR (arXiv 2012.15840) with progressive upsampling (PUP)."""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from vitadapter.layers.conv_norm_relu import conv_norm_relu

from .pixel_head import PixelHead

__all__ = ["SETRUpHead"]


class SETRUpHead(PixelHead):
    """Normalises one map of a plain ViT, and alternates convolutions and upsampling.

    Args:
        input_shape: names and shapes of the features, of which `in_feature` is read.
        in_feature: name of the map.
        num_classes: number of classes K.
        channels: channels of the convolutions.
        num_convs: number of 3 x 3 convolutions, each followed by upsampling.
        up_scale: factor by which each of them makes the map larger.
        norm: norm of the convolutions; see Detectron2's `get_norm`.
        dropout, loss_weight, loss_name, ignore_value: see `PixelHead`.

    Raises:
        ValueError: `in_feature` is not among the features, a number is out of range, or the map
            would become larger than the image.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        in_feature: str,
        num_classes: int,
        channels: int = 256,
        num_convs: int = 4,
        up_scale: int = 2,
        norm: str | Callable[[int], nn.Module] = "SyncBN",
        dropout: float = 0.0,
        loss_weight: float = 1.0,
        loss_name: str = "loss_sem_seg",
        ignore_value: int = 255,
    ) -> None:
        if in_feature not in input_shape:
            raise ValueError(f"in_feature must be one of {list(input_shape)}, got {in_feature!r}")
        shape = input_shape[in_feature]
        if num_convs < 1 or up_scale < 1 or shape.stride % up_scale**num_convs:
            raise ValueError(
                "num_convs and up_scale must be at least 1, and up_scale ** num_convs must divide "
                f"the stride {shape.stride} of {in_feature}, got {num_convs=}, {up_scale=}"
            )
        super().__init__(
            channels=channels,
            num_classes=num_classes,
            common_stride=shape.stride // up_scale**num_convs,
            dropout=dropout,
            loss_weight=loss_weight,
            loss_name=loss_name,
            ignore_value=ignore_value,
        )
        self.in_feature = in_feature
        self.up_scale = up_scale
        self.norm = nn.LayerNorm(shape.channels, eps=1e-6)
        inputs = [shape.channels] + [channels] * (num_convs - 1)
        self.convs = nn.ModuleList(conv_norm_relu(i, channels, 3, norm) for i in inputs)

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """See the base class."""
        x = self.norm(features[self.in_feature].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        for conv in self.convs:
            scale = self.up_scale
            x = F.interpolate(conv(x), scale_factor=scale, mode="bilinear", align_corners=False)
        return x
