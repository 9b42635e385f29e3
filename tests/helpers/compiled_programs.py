"""Compilers for tests, since Inductor takes seconds for each program."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.fx import GraphModule


class Programs:
    """A backend of `torch.compile` that runs graphs as they are, and counts them.

    Args:
        backend: one of PyTorch's own for debugging: "eager", or "aot_eager", which makes graphs of
            the backward pass as well, as Inductor does.
    """

    def __init__(self, backend: str = "eager") -> None:
        self.number = 0
        self._compile = torch._dynamo.lookup_backend(backend)

    def __call__(self, graph: GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        self.number += 1
        return self._compile(graph, inputs)


@contextmanager
def modules_compiled_by(programs: Programs) -> Iterator[None]:
    """Inside of this context, this compiles modules in place of Inductor."""
    compile_module = nn.Module.compile

    def compile_with(module: nn.Module, **options: object) -> None:
        compile_module(module, backend=programs, **options)

    nn.Module.compile = compile_with  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.compile = compile_module  # type: ignore[method-assign]
