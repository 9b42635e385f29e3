"""What the models have in common as functions of plain tensors."""

from typing import Protocol, cast

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn

__all__ = ["BackboneGraph", "Graph"]


class Model(Protocol):
    """What a `Graph` needs of a model."""

    backbone: Backbone
    pixel_mean: Tensor
    pixel_std: Tensor


class Graph(nn.Module):
    """A model as a function from pixels to plain tensors, which `torch.export` can trace.

    Args:
        model: in evaluation mode, with what `Model` describes.

    Attributes:
        takes_batches: whether it takes several images at once. Detectors take one image, since the
            numbers of detections differ.
        full_size: whether the last part is inside the graph, which then has one more input,
            `output_size`: the (height, width) of the answers in pixels, (2,) int64.
        outputs: names of what it returns.
        multiple: height and width of the images must be multiples of this, in pixels.

    Raises:
        ValueError: the model is in training mode, or is not as `Model` describes; or its backbone
            pads images to squares.
    """

    takes_batches = False
    full_size = False
    outputs: tuple[str, ...]
    multiple: int
    model: Model

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if model.training:
            raise ValueError("a model must be in evaluation mode to be exported: call model.eval()")
        missing = [name for name in Model.__annotations__ if not hasattr(model, name)]
        if missing:
            raise ValueError(
                f"a model must have {', '.join(Model.__annotations__)} to be exported, but "
                f"{type(model).__name__} has no {', '.join(missing)}"
            )
        self.model = cast(Model, model)
        constraints = self.model.backbone.padding_constraints
        if constraints.get("square_size", 0) > 0:
            raise ValueError(
                f"a backbone that pads images to squares cannot be exported, got {constraints}: "
                "set model.backbone.square_pad=0"
            )
        self.multiple = max(self.model.backbone.size_divisibility, 1)

    def normalised(self, images: Tensor, size: Tensor) -> Tensor:
        """Normalises images and makes the padding 0, as the model does it.

        Args:
            images: pixels (B, 3, H, W) in 0 .. 255, in the model's channel order; H and W are
                multiples of 32.
            size: the (height, width) of the images without padding, which is at the bottom and at
                the right, (2,) int64.
        """
        pixels = (images.to(self.model.pixel_mean.dtype) - self.model.pixel_mean) / (
            self.model.pixel_std
        )
        rows, columns = (
            torch.arange(side, device=pixels.device) < limit
            for side, limit in zip(pixels.shape[-2:], size.unbind(), strict=True)
        )
        return pixels.where(rows[:, None] & columns, 0)


class BackboneGraph(Graph):
    """The backbone of a model alone, with its pyramid."""

    takes_batches = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.outputs = tuple(self.model.backbone.output_shape())

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Maps images (see `Graph.normalised`) to feature maps (B, C, H / stride, W / stride)."""
        features = self.model.backbone(self.normalised(images, size))
        return tuple(features[name] for name in self.outputs)
