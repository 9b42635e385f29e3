"""The switch of the fast layers, and the test whether a module may be computed by them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules import module as all_modules

__all__ = [
    "are_plain_tensors",
    "as_on_gpu",
    "is_compiled",
    "is_eager",
    "is_on_gpu",
    "is_plain",
    "is_switched_on",
    "plain_layers",
]

# Hooks of all modules at once; PyTorch's own function that looks at them is newer than 2.6.
_GLOBAL_HOOKS = (
    all_modules._global_backward_pre_hooks,
    all_modules._global_backward_hooks,
    all_modules._global_forward_pre_hooks,
    all_modules._global_forward_hooks,
)
# Newer than 2.6, whose exported programs are compiled ones.
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)
_Module = TypeVar("_Module", bound=nn.Module)

_is_on = True
_is_as_on_gpu = False


@contextmanager
def plain_layers() -> Iterator[None]:
    """Inside this context, every layer computes and keeps what PyTorch's own layer does.

    This is for users who doubt a result, and for benchmarks and tests. (It does not change the
    deformable attention, which PyTorch does not have; its plain form is `MSDeformAttnReference`.)
    """
    global _is_on
    before, _is_on = _is_on, False
    try:
        yield
    finally:
        _is_on = before


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Inside this context, layers call on every device the operators that they call on a GPU.

    This is for counting what a GPU would run, and for tests.
    """
    global _is_as_on_gpu
    before, _is_as_on_gpu = _is_as_on_gpu, True
    try:
        yield
    finally:
        _is_as_on_gpu = before


def is_on_gpu(x: Tensor) -> bool:
    """Whether a tensor is on a GPU, or is to be handled as if it were."""
    return _is_as_on_gpu or x.is_cuda


def is_switched_on() -> bool:
    """Whether this runs outside of `plain_layers`."""
    return _is_on


def is_eager() -> bool:
    """Whether operations run one by one on values that are there.

    This is not so in a graph that is compiled, exported or traced, in transforms of `torch.func`
    and in automatic differentiation forward.
    """
    return (
        _is_on
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def is_compiled() -> bool:
    """Whether `torch.compile` traces this for a program that runs here, not for one to export.

    Exported programs have to do without the operators of this package.
    """
    return torch.compiler.is_dynamo_compiling() and not _is_exporting()


def is_plain(module: nn.Module, *types: type[_Module]) -> TypeGuard[_Module]:
    """Whether calling a module does nothing but what its class computes from its parameters.

    This is not so for wrappers (LoRA), parametrisations, modules with hooks (weight norm, pruning,
    observers) or a `forward` of their own, and parameters of another class (quantised). All these
    may compute anything, so they must be called as modules.

    Args:
        module: any module.
        types: the classes that are known; their subclasses are not.

    Returns:
        Whether it is one of them and plain. Always False inside `plain_layers`.
    """
    return (
        _is_on
        and type(module) in types
        and "forward" not in module.__dict__
        and not (
            module._forward_pre_hooks
            or module._forward_hooks
            or module._backward_pre_hooks
            or module._backward_hooks
        )
        and not any(_GLOBAL_HOOKS)
        and are_plain_tensors(*module._parameters.values())
    )


def are_plain_tensors(*tensors: Tensor | None) -> bool:
    """Whether all that are not None are ordinary tensors, not of a subclass with its own rules.

    Fake tensors stand for ordinary ones: what is kept for the backward pass must be the same.
    """
    return all(t is None or type(t) in (Tensor, nn.Parameter, FakeTensor) for t in tensors)
