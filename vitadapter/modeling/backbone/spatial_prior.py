"""The spatial prior module (paper section 3.3)."""

from collections.abc import Callable

import torch
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm
from detectron2.layers.batch_norm import LayerNorm
from torch import Tensor, nn

from vitadapter.layers.fast import PointwiseConv2d, is_plain, run_and_recompute

__all__ = ["SpatialPriorModule"]

_NORMS = (FrozenBatchNorm2d, NaiveSyncBatchNorm, LayerNorm)


class SpatialPriorModule(nn.Module):
    """A convolutional stem that gives the adapter local spatial priors at strides 4, 8, 16 and 32.

    The paper mentions only strides 8, 16 and 32. As in the official code, the map of stride 4 is
    also projected; it is added to the finest output.

    Args:
        conv_dim: channels of the stem.
        embed_dim: channels C of the outputs.
        norm: Detectron2's norm name, or a callable that makes a norm for a given number of
            channels.
        in_chans: channels of the images.
    """

    def __init__(
        self,
        conv_dim: int,
        embed_dim: int,
        norm: str | Callable[[int], nn.Module],
        in_chans: int = 3,
    ) -> None:
        super().__init__()

        def conv(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
            norm_layer = get_norm(norm, out_channels)
            return [
                nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
                norm_layer or nn.Identity(),
                # In place only in the output of a norm, never in the convolution's own output.
                nn.ReLU(inplace=norm_layer is not None),
            ]

        self.stem = nn.Sequential(
            *conv(in_chans, conv_dim, 2),
            *conv(conv_dim, conv_dim, 1),
            *conv(conv_dim, conv_dim, 1),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*conv(conv_dim, 2 * conv_dim, 2))
        self.conv3 = nn.Sequential(*conv(2 * conv_dim, 4 * conv_dim, 2))
        self.conv4 = nn.Sequential(*conv(4 * conv_dim, 4 * conv_dim, 2))
        self.fc1 = PointwiseConv2d(conv_dim, embed_dim)
        self.fc2 = PointwiseConv2d(2 * conv_dim, embed_dim)
        self.fc3 = PointwiseConv2d(4 * conv_dim, embed_dim)
        self.fc4 = PointwiseConv2d(4 * conv_dim, embed_dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Computes the spatial priors of images.

        Args:
            images: normalised images (B, in_chans, H, W), H and W multiples of 32.

        Returns:
            Maps (B, C, H / s, W / s) for the strides s = 4, 8, 16, 32.
        """
        c1 = self._run_stem(images.contiguous(memory_format=torch.channels_last))
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(c4)

    def _run_stem(self, images: Tensor) -> Tensor:
        if not is_plain(self.stem, nn.Sequential):
            return self.stem(images)
        c1 = self.stem[0](images)
        # Norm, ReLU, and the convolution or pooling after them. These maps are the model's largest.
        for start in (1, 4, 7):
            c1 = run_and_recompute(self.stem[start : start + 3], c1, _NORMS)
        return c1
