"""What the segmentation heads that classify pixels have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PixelHead", "pixel_cross_entropy"]


def pixel_cross_entropy(logits: Tensor, targets: Tensor, ignore_value: int) -> Tensor:
    """Computes the mean cross entropy of all pixels; ignored pixels count as 0.

    This is as in the official recipes. A crop in which all pixels are ignored has loss 0, not NaN.

    Args:
        logits: (B, K, h, w); they are resized bilinearly to the size of the targets.
        targets: labels (B, H, W) of any integer type.
        ignore_value: label of ignored pixels.

    Returns:
        A scalar.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = F.interpolate(logits, size=targets.shape[-2:], mode="bilinear", align_corners=False)
    summed = F.cross_entropy(logits, targets.long(), reduction="sum", ignore_index=ignore_value)
    return summed / targets.numel()


class PixelHead(nn.Module, ABC):
    """Maps features to class logits; subclasses define how the features are fused to one map.

    Args:
        channels: channels of the map that the classifier reads.
        num_classes: number of classes K.
        common_stride: stride of that map in pixels.
        dropout: probability that a channel of the classifier's input is zeroed in training.
        loss_weight: weight of the cross entropy.
        loss_name: name of the loss.
        ignore_value: label of pixels that are ignored in training.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        common_stride: int,
        dropout: float,
        loss_weight: float,
        loss_name: str = "loss_sem_seg",
        ignore_value: int,
    ) -> None:
        super().__init__()
        if num_classes < 1 or channels < 1 or not 0 <= dropout < 1:
            raise ValueError(
                "num_classes and channels must be positive and dropout lie in [0, 1), got "
                f"{num_classes=}, {channels=}, {dropout=}"
            )
        self.num_classes = num_classes
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.loss_name = loss_name
        self.ignore_value = ignore_value
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = nn.Conv2d(channels, num_classes, kernel_size=1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.get_parameter("bias"))

    @abstractmethod
    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """Fuses features to one map (B, channels, H / common_stride, W / common_stride)."""

    def logits(self, features: Mapping[str, Tensor]) -> Tensor:
        """Maps features to class logits (B, K, H / common_stride, W / common_stride)."""
        return self.predictor(self.dropout(self.fuse(features)))

    def forward(
        self, features: Mapping[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """
        Args:
            features: maps (B, C, H / stride, W / stride), by name.
            targets: labels (B, H, W), needed in training.

        Returns:
            In training, None and the loss; otherwise logits (B, K, H, W) and no loss.
        """
        logits = self.logits(features)
        if self.training:
            assert targets is not None
            return None, self.losses(logits, targets)
        scale = self.common_stride
        return F.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False), {}

    def losses(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Returns the weighted cross entropy of logits (B, K, h, w) and labels (B, H, W)."""
        loss = pixel_cross_entropy(logits, targets, self.ignore_value)
        return {self.loss_name: loss * self.loss_weight}
