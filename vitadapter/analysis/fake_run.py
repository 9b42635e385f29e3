"""Runs models on fake tensors, which have shapes but no data, through code that looks at data.

The losses of detectors ask for values: how many boxes a suppression leaves, which proposals overlap
an object, whether all scores are finite. So tensors that follow from known data alone (ground truth,
anchors, constants) keep real values beside the fake tensor. Where such code looks at what a network
has predicted, the prediction gets random values, once; whatever is computed from them has values
again, until it enters the next convolution or matrix product. Thus boxes, matching, suppression and
sampling are carried out for real, on a few megabytes, and everything that is large stays fake.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from vitadapter.analysis.flops import has_formula

__all__ = ["fake_run"]

aten = torch.ops.aten

# A tensor with more elements than this has no values, unless its values decide about a shape.
MAX_ELEMENTS = 2**24

_DECISIONS = {"topk", "sort", "argmax", "argmin", "isfinite", "isnan", "gt", "ge", "lt", "le"}
_DECISIONS |= {"eq", "ne", "all", "any", "max", "min", "equal"}
_DYNAMIC = {"nms", "nonzero", "masked_select", "repeat_interleave", "bincount"}
_MIXING = {"roi_align", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d"}


def _value(tensor: Tensor) -> Tensor | None:
    """The real values of a tensor, if they are known."""
    return getattr(tensor, "known_value", None) if isinstance(tensor, FakeTensor) else tensor


def _invent(tensor: Tensor) -> Tensor:
    """Gives a tensor random values, unless it has values."""
    known = _value(tensor)
    if known is None:
        shape, dtype = tuple(tensor.shape), tensor.dtype
        with unset_fake_temporarily():
            if dtype.is_floating_point:
                known = torch.randn(shape).to(dtype)
            else:
                known = torch.zeros(shape, dtype=dtype)
        tensor.known_value = known
    return known


class _KnownValues(TorchDispatchMode):
    """Carries values along, and answers what depends on them."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self._fake = fake

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        flat, spec = tree_flatten((args, kwargs))
        tensors = [x for x in flat if isinstance(x, Tensor)]
        name = func._overloadpacket.__name__
        if func is aten._local_scalar_dense.default:
            known = _invent(tensors[0])
            with unset_fake_temporarily():
                return known.item()
        if _has_dynamic_shape(func, name, tensors):
            return self._run_real(func, flat, spec)
        out = func(*args, **kwargs)
        if self._is_known(func, name, tensors, out):
            with unset_fake_temporarily():
                real_args, real_kwargs = tree_unflatten(
                    [_invent_or_keep(x) for x in flat], spec
                )
                real = func(*real_args, **real_kwargs)
            _attach(out, real)
        return out

    def _run_real(self, func, flat, spec):
        args, kwargs = tree_unflatten([_invent_or_keep(x) for x in flat], spec)
        with unset_fake_temporarily():
            real = func(*args, **kwargs)

        def fake(tensor: Tensor) -> Tensor:
            with self._fake:
                out = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            out.known_value = tensor
            return out

        return tree_map_only(Tensor, fake, real)

    def _is_known(self, func, name, tensors, out):
        outputs = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]
        if not outputs or any(x.numel() > MAX_ELEMENTS for x in (*outputs, *tensors)):
            return False
        known = [x for x in tensors if _value(x) is not None]
        if len(known) == len(tensors):
            return not name.startswith("empty")
        if torch._C._current_graph_task_id() != -1 or has_formula(func) or name in _MIXING:
            return False
        if name.startswith("_foreach") or name.startswith("_amp") or name.startswith("empty"):
            return False
        if func._schema.is_mutable and _value(tensors[0]) is None:
            return False
        return bool(known) or name in _DECISIONS


def _invent_or_keep(x):
    return _invent(x) if isinstance(x, Tensor) else x


def _has_dynamic_shape(func, name, tensors):
    if name in _DYNAMIC or torch.Tag.dynamic_output_shape in func.tags and name not in ("index",):
        return True
    return name == "index" and any(x.dtype in (torch.bool, torch.uint8) for x in tensors[1:])


def _attach(out, real):
    for fake, value in zip(tree_flatten(out)[0], tree_flatten(real)[0], strict=True):
        if isinstance(fake, FakeTensor):
            fake.known_value = value


class _Numpy(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], FakeTensor):
            value = _invent(args[0].detach())
            with unset_fake_temporarily():
                return value.numpy()
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_run(seed: int = 0) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(seed)
        fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_KnownValues(fake))
        stack.enter_context(_Numpy())
        yield
