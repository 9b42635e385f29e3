"""The switch of the fast layers, and of which modules their other ways to compute are true."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

__all__ = ["are_plain_tensors", "is_eager", "is_plain", "is_switched_on", "plain_layers"]

_is_on = True


@contextmanager
def plain_layers() -> Iterator[None]:
    """Inside, every layer computes as PyTorch's own does, and keeps what PyTorch's own keeps.

    For whoever doubts a result, and for benchmarks and tests. (The deformable attention is no
    layer of PyTorch's; its plain form is `MSDeformAttnReference`.)
    """
    global _is_on
    before, _is_on = _is_on, False
    try:
        yield
    finally:
        _is_on = before


def is_switched_on() -> bool:
    """Whether no `plain_layers` is around."""
    return _is_on


def is_eager() -> bool:
    """Whether operations run one by one: graphs (compiled, exported, traced) keep PyTorch's own."""
    return _is_on and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def is_plain(module: nn.Module, *types: type[nn.Module]) -> bool:
    """Whether calling a module is nothing more than what its class computes from its parameters.

    Not so for wrappers (LoRA), parametrisations, modules with hooks (weight norm, pruning,
    observers) or another `forward`, and parameters of another kind (quantised): their class, or
    what they carry, may compute anything, so they are called as modules.

    Args:
        module: any.
        types: the classes that are known, without their subclasses.

    Returns:
        always False inside `plain_layers`, so that modules are called there.
    """
    return (
        _is_on
        and type(module) in types
        and "forward" not in vars(module)
        and not (
            module._forward_pre_hooks
            or module._forward_hooks
            or module._backward_pre_hooks
            or module._backward_hooks
        )
        and not _has_any_global_hook()
        and are_plain_tensors(*module._parameters.values())
    )


def are_plain_tensors(*tensors: Tensor | None) -> bool:
    """Whether these (None aside) are PyTorch's tensors, not of a subclass with rules of its own."""
    return all(t is None or type(t) in (Tensor, nn.Parameter) for t in tensors)
