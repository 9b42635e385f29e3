"""Deep supervision by a second head, which only adds a loss."""

from collections.abc import Callable, Mapping, Sequence

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from vitadapter.layers.conv_norm_relu import conv_norm_relu

from .pixel_head import PixelHead

__all__ = ["FCNHead", "HeadWithAuxiliary"]


class FCNHead(PixelHead):
    """An auxiliary head with convolutions on one feature map (arXiv 1411.4038).

    Args:
        input_shape: names and shapes of the features, of which `in_feature` is read.
        in_feature: name of the map.
        num_classes: number of classes K.
        channels: channels of the convolutions.
        num_convs: number of 3 x 3 convolutions before the classifier.
        norm: norm of the convolutions; see Detectron2's `get_norm`.
        dropout, loss_weight, loss_name, ignore_value: see `PixelHead`.

    Raises:
        ValueError: `in_feature` is not among the features, or a number is out of range.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        in_feature: str = "res4",
        num_classes: int,
        channels: int = 256,
        num_convs: int = 1,
        norm: str | Callable[[int], nn.Module] = "SyncBN",
        dropout: float = 0.1,
        loss_weight: float = 0.4,
        loss_name: str = "loss_sem_seg_aux",
        ignore_value: int = 255,
    ) -> None:
        if in_feature not in input_shape:
            raise ValueError(f"in_feature must be one of {list(input_shape)}, got {in_feature!r}")
        if num_convs < 1:
            raise ValueError(f"num_convs must be at least 1, got {num_convs}")
        shape = input_shape[in_feature]
        super().__init__(
            channels=channels,
            num_classes=num_classes,
            common_stride=shape.stride,
            dropout=dropout,
            loss_weight=loss_weight,
            loss_name=loss_name,
            ignore_value=ignore_value,
        )
        self.in_feature = in_feature
        inputs = [shape.channels] + [channels] * (num_convs - 1)
        self.convs = nn.Sequential(*(conv_norm_relu(i, channels, 3, norm) for i in inputs))

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """See the base class."""
        return self.convs(features[self.in_feature])


class HeadWithAuxiliary(nn.Module):
    """A head with auxiliary ones, which are trained but not used in inference.

    Args:
        head: the head that predicts.
        auxiliary_head: a head, or several, on the same features, with the same classes and ignored
            label.

    Raises:
        ValueError: the heads differ in classes or ignored label, or their losses have the same
            name.
    """

    def __init__(self, head: PixelHead, auxiliary_head: PixelHead | Sequence[PixelHead]) -> None:
        super().__init__()
        self.head = head
        self.auxiliary_head = (
            auxiliary_head
            if isinstance(auxiliary_head, nn.Module)
            else nn.ModuleList(auxiliary_head)
        )
        heads = [head, *self._auxiliary_heads()]
        for name in ("num_classes", "ignore_value"):
            values = tuple(getattr(head, name) for head in heads)
            if len(set(values)) > 1:
                raise ValueError(f"head and auxiliary head must have the same {name}, got {values}")
        losses = [head.loss_name for head in heads]
        for loss in set(losses):
            if losses.count(loss) > 1:
                raise ValueError(f"the losses of the heads must differ, got {loss} twice")
        self.num_classes = head.num_classes
        self.ignore_value = head.ignore_value

    def forward(
        self, features: Mapping[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See `PixelHead.forward`; in training, returns the losses of all heads."""
        if not self.training:
            return self.head(features)
        _, losses = self.head(features, targets)
        for auxiliary_head in self._auxiliary_heads():
            losses = losses | auxiliary_head(features, targets)[1]
        return None, losses

    def _auxiliary_heads(self) -> list[nn.Module]:
        found = self.auxiliary_head
        return list(found) if isinstance(found, nn.ModuleList) else [found]
