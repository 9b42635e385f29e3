"""The namespace `torch.ops.vitadapter`: its compiled library, and what Python adds to it.

The schemas and the kernels for CPU and CUDA are compiled (`kernels/ms_deform_attn`). The rules for
tracing, autograd, autocast and counting FLOPs, and an implementation for all other devices, are
registered here.
"""

import functools
import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._ops import OpOverloadPacket
from torch.utils.flop_counter import register_flop_formula

from vitadapter.ops.arguments import (
    Argument,
    check_arguments,
    check_grad_output,
    flatten_spatial_shapes,
)

__all__ = ["Operator", "describe_build"]


def _how_to_compile() -> str:
    """The command, and where to run it. It ends with an error where nothing can be compiled."""
    source = Path(__file__).parents[2]
    editable, where = (
        ("-e ", source) if (source / "setup.py").is_file() else ("", "the source code")
    )
    return f"VITADAPTER_COMPILE=1 pip install --no-build-isolation {editable}. (in {where})"


def _load_extension() -> ModuleType | None:
    """Loads the compiled operators, which then register themselves with PyTorch.

    Returns:
        None if the extension has not been built.

    Raises:
        ImportError: the extension exists but does not load, for example because it was built for
            another version of PyTorch. Without it, the model would run, but slowly.
    """
    spec = importlib.util.find_spec("vitadapter._C")
    if spec is None:
        return None
    try:
        return importlib.import_module("vitadapter._C")
    except ImportError as error:
        raise ImportError(
            f"the compiled operators of vitadapter at {spec.origin} do not load: {error}. They fit "
            f"only the PyTorch they were built with; rebuild them: {_how_to_compile()}"
        ) from error


@functools.cache
def _warn_missing_extension() -> None:
    """Warns, once per process, that the PyTorch implementation is used instead of the kernels."""
    warnings.warn(
        "the compiled operators of vitadapter are not built; the slower PyTorch implementation is "
        f"used. Compile them: {_how_to_compile()}",
        stacklevel=2,
    )


_EXTENSION = _load_extension()
_LIBRARY = torch.library.Library("vitadapter", "FRAGMENT")


def describe_build() -> str:
    """How the operators run here: compiled for which devices, or in PyTorch and how to compile."""
    if _EXTENSION is None:
        return f"not compiled: the slower PyTorch implementation is used; {_how_to_compile()}"
    capability = torch.ops.vitadapter._cpu_capability()
    architectures = _EXTENSION.cuda_architectures
    cuda = f"CUDA ({architectures})" if architectures else "not for CUDA"
    if torch.cuda.is_available() and not architectures:
        cuda += f", where the slower PyTorch implementation is used; {_how_to_compile()}"
    return f"compiled with torch {_EXTENSION.torch_version} for CPU ({capability} in use), {cuda}"


class _Context(Protocol):
    """What an operator uses of autograd's context."""

    spatial_shapes: list[int]
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


@dataclass(frozen=True)
class Operator:
    """`name(value, spatial_shapes, *taps)` and `name_backward`, which gives its gradients.

    Attributes:
        name: its name in `torch.ops.vitadapter`.
        rules: names and rules of `taps`, in order.
        sample: computes it in plain PyTorch, from arguments that obey the rules.
        sample_backward: computes the gradients of `value` and of each of `taps`, from
            `(grad_output, value, spatial_shapes, *taps)`.
    """

    name: str
    rules: Mapping[str, Argument]
    sample: Callable[..., Tensor]
    sample_backward: Callable[..., tuple[Tensor, ...]]

    def __call__(
        self, value: Tensor, spatial_shapes: Sequence[tuple[int, int]], *taps: Tensor
    ) -> Tensor:
        """Runs the device's kernel, or plain PyTorch; coordinates may have half precision."""
        shapes = flatten_spatial_shapes(spatial_shapes)
        return self._op(value, shapes, *self._upcast(value, taps))

    def reference(
        self, value: Tensor, spatial_shapes: Sequence[tuple[int, int]], *taps: Tensor
    ) -> Tensor:
        """Does the same in plain PyTorch on any device, differentiable by autograd."""
        shapes = flatten_spatial_shapes(spatial_shapes)
        return self.forward_reference(value, shapes, *self._upcast(value, taps))

    def forward_reference(
        self, value: Tensor, spatial_shapes: Sequence[int], *taps: Tensor
    ) -> Tensor:
        """Computes in plain PyTorch what the operator computes."""
        check_arguments(self.name, self.rules, value, spatial_shapes, *taps)
        return self.sample(value, spatial_shapes, *taps)

    def backward_reference(
        self, grad_output: Tensor, value: Tensor, spatial_shapes: Sequence[int], *taps: Tensor
    ) -> tuple[Tensor, ...]:
        """Computes in plain PyTorch what the operator's backward computes."""
        self._check_backward(grad_output, value, spatial_shapes, *taps)
        return self.sample_backward(grad_output, value, spatial_shapes, *taps)

    def register(self) -> "Operator":
        """Registers the operator with PyTorch, and returns it."""
        name, backward = self.name, f"{self.name}_backward"
        if _EXTENSION is None:
            inputs = ", ".join(["Tensor value", "SymInt[] spatial_shapes"])
            inputs += "".join(f", Tensor {tap}" for tap in self.rules)
            gradients = ", ".join(["Tensor"] * (1 + len(self.rules)))
            _LIBRARY.define(f"{name}({inputs}) -> Tensor")
            _LIBRARY.define(f"{backward}(Tensor grad_output, {inputs}) -> ({gradients})")
        _LIBRARY.impl(name, self._any_device, "CompositeExplicitAutograd")
        _LIBRARY.impl(backward, self.backward_reference, "CompositeExplicitAutograd")
        for key in ("AutocastCPU", "AutocastCUDA"):
            _LIBRARY.impl(name, self._autocast, key)
        torch.library.register_fake(f"vitadapter::{name}", self._fake, lib=_LIBRARY)
        torch.library.register_fake(f"vitadapter::{backward}", self._fake_backward, lib=_LIBRARY)
        torch.library.register_autograd(
            f"vitadapter::{name}", self._backward, setup_context=_save_inputs, lib=_LIBRARY
        )
        torch.library.register_autograd(
            f"vitadapter::{backward}", self._refuse_double_backward, lib=_LIBRARY
        )
        register_flop_formula(self._op)(self._flops)
        register_flop_formula(self._backward_op)(self._backward_flops)
        return self

    @property
    def _op(self) -> OpOverloadPacket:
        return getattr(torch.ops.vitadapter, self.name)

    @property
    def _backward_op(self) -> OpOverloadPacket:
        return getattr(torch.ops.vitadapter, f"{self.name}_backward")

    def _upcast(self, value: Tensor, taps: tuple[Tensor, ...]) -> list[Tensor]:
        """Converts half-precision coordinates to the dtype that goes with the value."""
        half = (torch.float16, torch.bfloat16)
        return [
            tap.to(rule.dtype(value.dtype)) if rule.is_coordinate and tap.dtype in half else tap
            for rule, tap in zip(self.rules.values(), taps, strict=True)
        ]

    def _check_backward(
        self, grad_output: Tensor, value: Tensor, spatial_shapes: Sequence[int], *taps: Tensor
    ) -> None:
        sizes = check_arguments(self.name, self.rules, value, spatial_shapes, *taps)
        check_grad_output(self.name, grad_output, value, sizes)

    def _any_device(self, value: Tensor, spatial_shapes: Sequence[int], *taps: Tensor) -> Tensor:
        if _EXTENSION is None:
            _warn_missing_extension()
        return self.forward_reference(value, spatial_shapes, *taps)

    def _autocast(self, value: Tensor, spatial_shapes: Sequence[int], *taps: Tensor) -> Tensor:
        """Converts the other tensors to the dtypes that go with `value`."""
        dtypes = [rule.dtype(value.dtype) for rule in self.rules.values()]
        with torch.autocast(value.device.type, enabled=False):
            return self._op(value, spatial_shapes, *map(Tensor.to, taps, dtypes))

    def _fake(self, value: Tensor, spatial_shapes: Sequence[int], *taps: Tensor) -> Tensor:
        sizes = check_arguments(self.name, self.rules, value, spatial_shapes, *taps)
        return value.new_empty([sizes[axis] for axis in ("batch", "queries", "channels")])

    def _fake_backward(
        self, grad_output: Tensor, value: Tensor, spatial_shapes: Sequence[int], *taps: Tensor
    ) -> tuple[Tensor, ...]:
        self._check_backward(grad_output, value, spatial_shapes, *taps)
        return tuple(tensor.new_empty(tensor.shape) for tensor in (value, *taps))

    def _backward(self, ctx: _Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        value, *taps = ctx.saved_tensors
        grad_value, *grads = self._backward_op(grad_output, value, ctx.spatial_shapes, *taps)
        return grad_value, None, *grads

    def _flops(self, *shapes: Sequence[int], out_shape: Sequence[int]) -> int:
        """Of each value: a bilinear sample (4 multiply-adds) and its weight, for every tap.

        Args:
            shapes: of the arguments, in order, of which the last has the weights of the taps.
            out_shape: of the result.

        Returns:
            FLOPs as `torch.utils.flop_counter` counts them, which takes a multiply-add as two.
        """
        levels, points = shapes[-1][-2:]
        return 2 * 5 * math.prod(out_shape) * levels * points

    def _backward_flops(
        self, grad_shape: Sequence[int], *shapes: Sequence[int], **_: object
    ) -> int:
        """Twice the forward pass: gradients of the value and of the taps."""
        return 2 * self._flops(*shapes, out_shape=grad_shape)

    def _refuse_double_backward(self, ctx: _Context, *grads: Tensor) -> tuple[None, ...]:
        raise NotImplementedError(
            f"{self.name} has no second derivative: gradient penalties and Hessians cannot pass "
            "through it"
        )


def _save_inputs(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, *taps = inputs
    ctx.save_for_backward(value, *taps)
