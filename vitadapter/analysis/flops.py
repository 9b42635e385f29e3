"""Counts FLOPs of operators while a model runs, also on the meta device, without its memory.

fvcore's `FlopCountAnalysis` traces the model, which fails on the meta device and for operators with
a list of symbolic integers, such as ours. So operators are counted as they are dispatched, with the
same rules: a fused multiply-add is one FLOP, and norms and interpolation have fvcore's formulas.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fvcore.nn.jit_analysis import _IGNORED_OPS
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import vitadapter.ops  # noqa: F401 (registers the operators)

__all__ = ["FlopCounter", "flops_of", "has_formula"]

aten = torch.ops.aten

# Moves data or looks at it, beside views and what fvcore ignores.
_FREE = {"_to_copy", "_unsafe_view", "clone", "copy", "lift_fresh", "max_pool2d_with_indices"}
_FREE |= {name.removeprefix("aten::") for name in _IGNORED_OPS}


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, out: object) -> int:
    """Scores and their product with the values; PyTorch has no formula for the CPU's kernel."""
    return query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _norm(x: Tensor, *args: Any, out: object, weight: int) -> int:
    """fvcore's rule: 5 for each value with a learnt scale, else 4."""
    return x.numel() * (5 if args[weight] is not None else 4)


def _batch_norm(x: Tensor, weight: Tensor | None, *args: Any, out: object) -> int:
    """In inference."""
    return x.numel() * (2 if weight is not None else 1)


def _nearest(*args: Any, out: Tensor) -> int:
    return out.numel()


def _bilinear(*args: Any, out: Tensor) -> int:
    return 4 * out.numel()


def _layer_norm(*args: Any, out: object) -> int:
    return _norm(*args, out=out, weight=1)


def _group_norm(*args: Any, out: object) -> int:
    return _norm(*args, out=out, weight=0)


_FORMULAS: Mapping[OpOverloadPacket, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten.native_layer_norm: _layer_norm,
    aten.native_group_norm: _group_norm,
    aten.native_batch_norm: _batch_norm,
    aten._native_batch_norm_legit_no_training: _batch_norm,
    aten.upsample_nearest2d: _nearest,
    aten.upsample_bilinear2d: _bilinear,
    aten.grid_sampler_2d: _bilinear,
}


class FlopCounter(TorchDispatchMode):
    """While active, counts what operators cost. Use it without gradients, for inference.

    Args:
        part: tells to which part of the model the running operator belongs.

    Attributes:
        flops: FLOPs by (part, operator).
        not_counted: calls of operators that have no formula, by (part, operator). Most work on
            single values, such as additions and activations.
    """

    def __init__(self, part: Callable[[], str] = lambda: "") -> None:
        super().__init__()
        self._part = part
        self.flops: Counter[tuple[str, str]] = Counter()
        self.not_counted: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        key = self._part(), packet._qualified_op_name.removeprefix("aten::")
        flops = flops_of(func, args, kwargs or {}, out)
        if flops is not None:
            self.flops[key] += flops
        elif not (func.is_view or packet.__name__ in _FREE):
            self.not_counted[key] += 1
        return out


def flops_of(
    func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: object
) -> int | None:
    """FLOPs of a call that gave `out`; None for an operator without a formula."""
    packet = func._overloadpacket
    if packet in _FORMULAS:
        return _FORMULAS[packet](*args, out=out)
    if packet in flop_registry:
        # PyTorch counts a multiply-add as two.
        return flop_registry[packet](*args, **kwargs, out_val=out) // 2
    return None


def has_formula(func: OpOverload) -> bool:
    """Whether the operator's FLOPs are counted: it multiplies, normalises or samples."""
    return func._overloadpacket in _FORMULAS or func._overloadpacket in flop_registry
