"""What the tests of linear layers share."""

from collections.abc import Callable

import torch
from torch import Tensor

from vitadapter.layers.fast import recomputed

__all__ = ["gradients", "read"]


def read(x: Tensor) -> Tensor:
    """A tensor that `linear` makes again for its own backward pass, with the strides of x."""
    return recomputed(lambda t: t.view_as(t), x)


def gradients(
    run: Callable[..., Tensor], *tensors: Tensor, expand: bool = False
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output of a layer, and the gradients of the tensors that it is called with.

    Args:
        run: the layer.
        tensors: its inputs and parameters.
        expand: whether the gradient that comes back has a stride of 0, as that of a sum.
    """
    tensors = tuple(t.detach().clone().requires_grad_() for t in tensors)
    output = run(*tensors)
    torch.manual_seed(1)
    loss = output.sum() if expand else (output * torch.randn(output.shape).to(output)).sum()
    return output.detach(), torch.autograd.grad(loss, tensors)
