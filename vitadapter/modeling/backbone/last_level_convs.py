"""Further pyramid levels below FPN's last, as in the official ATSS and GFL."""

from fvcore.nn import weight_init
from torch import Tensor, nn

__all__ = ["LastLevelConvs"]


class LastLevelConvs(nn.Module):
    """A `top_block` of Detectron2's FPN: P6 and P7 by strided convolutions.

    Unlike Detectron2's `LastLevelP6P7` there is no ReLU before P7. Parameter names are the same.
    """

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "p5") -> None:
        """
        Args:
            in_channels: of `in_feature`.
            out_channels: of both levels.
            in_feature: an output of FPN, or of its bottom-up network.
        """
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, kernel_size=3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            weight_init.c2_xavier_fill(conv)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) to P6 and P7, each half the size of the level before."""
        p6 = self.p6(x)
        return [p6, self.p7(p6)]
