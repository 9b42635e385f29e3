"""Convolutions that are computed as one matrix product over tokens.

PyTorch's backward pass of a 2x2 transposed convolution takes eight times as long as the product,
and its 1x1 convolutions do not use oneDNN when they run on a single thread.
"""

from torch import Tensor, nn

from vitadapter.layers.fast.linear import linear
from vitadapter.layers.fast.switch import is_plain, is_switched_on

__all__ = ["PointwiseConv2d", "UpsampleConv2d", "add_upsampled"]


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution with the state dict of `nn.Conv2d(in_channels, out_channels, 1)`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to a channels-last map (B, C', H, W)."""
        if not is_switched_on():
            return super().forward(x)
        tokens = linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return tokens.permute(0, 3, 1, 2)


class UpsampleConv2d(nn.ConvTranspose2d):
    """A transposed convolution to twice the size, where each cell becomes 2 x 2 cells.

    The state dict is that of `nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, H, W) to a channels-last map (B, C', 2H, 2W).

        Raises:
            ValueError: an `output_size` is given, although there is only one.
        """
        if output_size is not None:
            raise ValueError(f"the output has twice the size, got {output_size=}")
        if not is_switched_on():
            return super().forward(x)
        return self.rows_of(x).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)

    def rows_of(self, x: Tensor) -> Tensor:
        """Upsamples (B, C, H, W) to (B, H, 2, W, 2, C')."""
        # (C, C', 2, 2) to rows (y, x, C') of a linear layer
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)
        bias = None if self.bias is None else self.bias.repeat(4)
        cells = linear(x.permute(0, 2, 3, 1), weight, bias)
        # (B, H, W, 2, 2, C')
        return cells.unflatten(-1, (2, 2, self.out_channels)).transpose(2, 3)


def add_upsampled(layer: nn.Module, x: Tensor, other: Tensor) -> Tensor:
    """`other + layer(x)`, without a copy of the upsampled map.

    Args:
        layer: `UpsampleConv2d` or what a user replaced it by.
        x: (B, C, H, W).
        other: a channels-last map (B, C', 2H, 2W).
    """
    if not is_plain(layer, UpsampleConv2d):
        return other + layer(x)
    # (B, H, 2, W, 2, C'), which comes first, so that the sum has its layout
    other = other.permute(0, 2, 3, 1).unflatten(1, (-1, 2)).unflatten(3, (-1, 2))
    return (other + layer.rows_of(x)).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
