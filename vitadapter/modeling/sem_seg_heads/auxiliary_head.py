"""Deep supervision: a second head that only adds a loss."""

from collections.abc import Mapping

from torch import Tensor, nn

from .pixel_head import PixelHead

__all__ = ["HeadWithAuxiliary"]


class HeadWithAuxiliary(nn.Module):
    """A head, and an auxiliary one beside it that is trained and not used in inference.

    Args:
        head: predicts.
        auxiliary_head: on the same features, with the same classes and ignored label.

    Raises:
        ValueError: the heads disagree on classes or ignored label, or name their losses alike.
    """

    def __init__(self, head: PixelHead, auxiliary_head: PixelHead) -> None:
        super().__init__()
        for name in ("num_classes", "ignore_value"):
            values = getattr(head, name), getattr(auxiliary_head, name)
            if values[0] != values[1]:
                raise ValueError(f"head and auxiliary head must have the same {name}, got {values}")
        if head.loss_name == auxiliary_head.loss_name:
            raise ValueError(f"the losses of the heads must differ, got {head.loss_name} twice")
        self.head = head
        self.auxiliary_head = auxiliary_head
        self.num_classes = head.num_classes
        self.ignore_value = head.ignore_value

    def forward(
        self, features: Mapping[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See `PixelHead.forward`; in training with the losses of both."""
        if not self.training:
            return self.head(features)
        _, losses = self.head(features, targets)
        _, auxiliary_losses = self.auxiliary_head(features, targets)
        return None, losses | auxiliary_losses
