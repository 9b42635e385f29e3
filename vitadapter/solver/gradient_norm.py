"""The norm of all gradients together and its bound, also where processes have parts of them."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

__all__ = ["clip_norm", "total_norm"]


def _by_kind(tensors: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Those that are divided between processes, and the others: PyTorch takes one kind at once."""
    listed = list(tensors)
    divided: list[Tensor] = [tensor for tensor in listed if isinstance(tensor, DTensor)]
    return divided, [tensor for tensor in listed if not isinstance(tensor, DTensor)]


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of gradients as one vector.

    Args:
        gradients: of any shapes; divided between processes or not.

    Returns:
        A scalar (), the same in all processes that share the gradients; 0 without any.
    """
    # Without any, PyTorch's norm is on the CPU, and to bring both together would wait for the GPU.
    norms = [get_total_norm(kind) for kind in _by_kind(gradients) if kind]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack(whole)) if whole else torch.tensor(0.0)


def clip_norm(parameters: Iterable[Tensor], max_norm: float) -> None:
    """Scales gradients in place so that their norm together is at most `max_norm`.

    Args:
        parameters: whose gradients are clipped; those without one are left out.
        max_norm: upper bound of the Euclidean norm.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    norm = total_norm([cast(Tensor, p.grad) for p in with_gradient])
    divided, rest = _by_kind(with_gradient)
    # By default, PyTorch scales divided gradients one by one, which takes long on the CPU.
    clip_grads_with_norm_(divided, max_norm, norm, foreach=True)
    clip_grads_with_norm_(rest, max_norm, norm)
