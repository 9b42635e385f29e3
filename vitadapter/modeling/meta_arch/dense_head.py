"""Convolutional head that ATSS and GFL share: two towers and a scale per level."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn

__all__ = ["DenseHead"]


def _tower(
    in_channels: int, conv_dims: Sequence[int], norm: str | Callable[[int], nn.Module]
) -> nn.Sequential:
    widths = [in_channels, *conv_dims]
    return nn.Sequential(
        *(
            Conv2d(
                width,
                next_width,
                kernel_size=3,
                padding=1,
                bias=norm == "",
                norm=get_norm(norm, next_width),
                activation=nn.ReLU(),
            )
            for width, next_width in pairwise(widths)
        )
    )


class DenseHead(nn.Module):
    """Class logits and box predictions of one anchor per location, on every pyramid level.

    Detectron2's `RetinaNetHead` keeps a bias before each norm; the official heads have none.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_levels: int,
        num_classes: int,
        box_dim: int = 4,
        conv_dims: Sequence[int] = (256, 256, 256, 256),
        norm: str | Callable[[int], nn.Module] = "GN",
        prior_prob: float = 0.01,
    ) -> None:
        """
        Args:
            in_channels: of every level.
            num_levels: number of pyramid levels.
            num_classes: number of foreground classes.
            box_dim: numbers that describe a box.
            conv_dims: channels of the convolutions of each tower.
            norm: after each of them; Detectron2's name or a callable.
            prior_prob: what the class scores are initially.
        """
        super().__init__()
        self.cls_subnet = _tower(in_channels, conv_dims, norm)
        self.bbox_subnet = _tower(in_channels, conv_dims, norm)
        channels = [in_channels, *conv_dims][-1]
        self.cls_score = nn.Conv2d(channels, num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, box_dim, kernel_size=3, padding=1)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in range(num_levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, features: Sequence[Tensor]) -> list[list[Tensor]]:
        """
        Args:
            features: per level, (B, in_channels, H_l, W_l).

        Returns:
            list[list[Tensor]]: of each kind of prediction (logits, boxes, ...) one (B, D, H_l,
            W_l) per level.
        """
        levels = [
            self.predict(feature, scale)
            for feature, scale in zip(features, self.scales, strict=True)
        ]
        return [list(kind) for kind in zip(*levels, strict=True)]

    def predict(self, feature: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        """All predictions of one level, logits and boxes first."""
        logits = self.cls_score(self.cls_subnet(feature))
        return logits, self.predict_boxes(self.bbox_subnet(feature), scale)

    def predict_boxes(self, feature: Tensor, scale: Tensor) -> Tensor:
        """Boxes (B, box_dim, H, W) from the box tower's feature."""
        # In half precision the exponential of a box's size would lose pixels.
        return (self.bbox_pred(feature) * scale).float()
