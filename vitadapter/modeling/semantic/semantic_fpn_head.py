"""The head of Semantic FPN (arXiv 1901.02446)."""

from collections.abc import Callable, Mapping

from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import Tensor, nn

from .pixel_head import pixel_cross_entropy

__all__ = ["SemanticFPNHead"]


class SemanticFPNHead(SemSegFPNHead):
    """Detectron2's head, with dropout before the classifier and the official recipes' loss.

    Args:
        input_shape: names and shapes of the FPN's features.
        num_classes: number of classes K.
        conv_dims: channels of the convolutions.
        common_stride: stride in pixels at which the levels are summed and classified.
        norm: norm of the convolutions; see Detectron2's `get_norm`.
        dropout, loss_weight, ignore_value: see `PixelHead`.

    Raises:
        ValueError: there are no features, or `dropout` is outside [0, 1).
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        conv_dims: int = 128,
        common_stride: int = 4,
        norm: str | Callable[[int], nn.Module] = "SyncBN",
        dropout: float = 0.1,
        loss_weight: float = 1.0,
        ignore_value: int = 255,
    ) -> None:
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        super().__init__(
            dict(input_shape),
            num_classes=num_classes,
            conv_dims=conv_dims,
            common_stride=common_stride,
            loss_weight=loss_weight,
            norm=norm,
            ignore_value=ignore_value,
        )
        self.num_classes = num_classes
        self.dropout = nn.Dropout2d(dropout)

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """Maps features to class logits (B, K, H / common_stride, W / common_stride)."""
        first, *others = (
            head(features[name])
            for head, name in zip(self.scale_heads, self.in_features, strict=True)
        )
        return self.predictor(self.dropout(sum(others, first)))

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Returns the weighted cross entropy of logits (B, K, h, w) and labels (B, H, W)."""
        loss = pixel_cross_entropy(predictions, targets, self.ignore_value)
        return {"loss_sem_seg": loss * self.loss_weight}
