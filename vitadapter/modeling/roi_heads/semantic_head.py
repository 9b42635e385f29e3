"""The semantic branch of Hybrid Task Cascade (arXiv 1901.07518, figure 3)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn
from torch.nn import functional as F

from vitadapter.layers.conv_norm_relu import conv_norm_relu
from vitadapter.modeling.semantic.pixel_head import pixel_cross_entropy

__all__ = ["FusedSemanticHead"]


class FusedSemanticHead(nn.Module):
    """Fuses all levels of a feature pyramid at one stride and segments the image.

    Box and mask heads use its last features, not the segmentation.

    Args:
        in_channels: channels of every level.
        in_features: names of the levels, finest first.
        pooler: pools its features for the other heads, to the size for masks.
        fusion_level: index of the level to whose size the others are resized.
        stride: stride of that level, in pixels.
        num_convs: number of 3x3 convolutions after the fusion.
        conv_dim: channels of these and of the features for other heads.
        num_classes: number of semantic classes; COCO-Stuff has 183.
        norm: Detectron2's norm name or a callable; "" for none.
        ignore_value: label of pixels that are ignored in training.
        loss_weight: factor of the loss.

    Raises:
        ValueError: `fusion_level` is not one of the levels.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        in_features: Sequence[str],
        pooler: ROIPooler,
        fusion_level: int = 1,
        stride: int = 8,
        num_convs: int = 4,
        conv_dim: int = 256,
        num_classes: int = 183,
        norm: str | Callable[[int], nn.Module] = "",
        ignore_value: int = 255,
        loss_weight: float = 0.2,
    ) -> None:
        super().__init__()
        num_levels = len(in_features)
        if not 0 <= fusion_level < num_levels:
            raise ValueError(f"fusion_level must be in 0..{num_levels - 1}, got {fusion_level}")
        self.in_features = tuple(in_features)
        self.pooler = pooler
        self.fusion_level = fusion_level
        self.stride = stride
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.lateral_convs = nn.ModuleList(
            conv_norm_relu(in_channels, in_channels, 1, norm) for _ in range(num_levels)
        )
        self.convs = nn.ModuleList(
            conv_norm_relu(in_channels if i == 0 else conv_dim, conv_dim, 3, norm)
            for i in range(num_convs)
        )
        embedding_dim = conv_dim if num_convs else in_channels
        self.conv_embedding = conv_norm_relu(embedding_dim, conv_dim, 1, norm)
        self.conv_logits = nn.Conv2d(embedding_dim, num_classes, 1)
        nn.init.kaiming_normal_(self.conv_logits.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.conv_logits.get_parameter("bias"))

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """
        Args:
            features: (N, C, H_l, W_l) of each level, by name.

        Returns:
            Class logits (N, num_classes, H, W) and features for the other heads (N, conv_dim, H,
            W), with the size of the fusion level.
        """
        levels = [features[name] for name in self.in_features]
        size = levels[self.fusion_level].shape[-2:]
        fused = torch.zeros((), device=levels[0].device)
        for conv, feature in zip(self.lateral_convs, levels, strict=True):
            fused = fused + conv(self._resize(feature, size))
        for conv in self.convs:
            fused = conv(fused)
        return self.conv_logits(fused), self.conv_embedding(fused)

    def _resize(self, feature: Tensor, size: torch.Size) -> Tensor:
        if feature.shape[-2:] == size:
            return feature
        return F.interpolate(feature, size=size, mode="bilinear", align_corners=True)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Computes the mean cross entropy, in which ignored pixels count as 0, as officially.

        Args:
            logits: (N, num_classes, H, W).
            labels: (N, H, W) integers.

        Raises:
            ValueError: the shapes do not fit together.
        """
        if labels.shape != (len(logits), *logits.shape[-2:]):
            raise ValueError(
                f"labels (N, H, W) are needed for logits {tuple(logits.shape)}, "
                f"got {tuple(labels.shape)}"
            )
        return pixel_cross_entropy(logits, labels, self.ignore_value) * self.loss_weight
