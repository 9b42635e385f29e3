"""Runs models on fake tensors, which have shapes but no data, through code that looks at data.

The losses of detectors ask for values: how many boxes a suppression leaves, which proposals overlap
an object, whether all scores are finite. So tensors that follow from known data alone (ground
truth, anchors, constants) keep real values beside the fake tensor. Where code compares or sorts
what a network has predicted, or combines it with known values, the prediction gets random values
of unit variance, once. What is computed from these has values again, up to the next convolution,
matrix product or other costly operator. Thus decoding, suppression, matching and sampling of boxes
are carried out for real, on a few megabytes, and everything that is large stays fake.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from vitadapter.analysis.flops import has_formula

__all__ = ["fake_run"]

# A tensor with more elements gets no values, unless they decide about the shape of another.
_MAX_ELEMENTS = 2**24

# Whoever asks these about a prediction is about to decide something.
_DECISIONS = {"all", "any", "argmax", "argmin", "equal", "isfinite", "isnan", "max", "min"}
_DECISIONS |= {"eq", "ge", "gt", "le", "lt", "ne", "sort", "topk"}
# PyTorch does not mark these as operators whose results' shapes depend on data.
_DYNAMIC = {"bincount", "nms", "repeat_interleave"}
# Besides those that have a formula for their FLOPs.
_COSTLY = {"_adaptive_avg_pool2d", "avg_pool2d", "max_pool2d_with_indices", "roi_align"}
_FAILURES = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


class _Values:
    """The real values of tensors, as far as they are known; they live as long as the tensors."""

    def __init__(self) -> None:
        # Attributes of the fake tensors would be copied with them, which fails.
        self._of_fake = WeakTensorKeyDictionary()

    def get(self, tensor: Tensor) -> Tensor | None:
        """The values of a tensor; None if they are not known."""
        return self._of_fake.get(tensor) if isinstance(tensor, FakeTensor) else tensor

    def set(self, fake: Tensor, values: Tensor) -> None:
        self._of_fake[fake] = values

    def make(self, leaf: object) -> object:
        """The values of a tensor, which gets random ones if it has none; else the argument."""
        if not isinstance(leaf, Tensor):
            return leaf
        known = self.get(leaf)
        if known is None:
            with unset_fake_temporarily():
                known = torch.randn(tuple(leaf.shape)).to(leaf.dtype)
            self.set(leaf, known)
        return known


class _KnownValues(TorchDispatchMode):
    """Carries known values along, and answers what depends on values."""

    def __init__(self, fake: FakeTensorMode, values: _Values) -> None:
        super().__init__()
        self._fake = fake
        self._values = values

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if _depends_on_values(func, tensors):
            real = self._compute(func, args, kwargs)
            return tree_map_only(Tensor, self._as_fake, real)
        out = func(*args, **kwargs)
        if self._gives_values(func, tensors, out):
            real = self._compute(func, args, kwargs)
            for fake, values in zip(tree_leaves(out), tree_leaves(real), strict=True):
                if isinstance(fake, FakeTensor):
                    self._values.set(fake, values)
        return out

    def _compute(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        real_args, real_kwargs = tree_unflatten([self._values.make(leaf) for leaf in leaves], spec)
        with unset_fake_temporarily():
            return func(*real_args, **real_kwargs)

    def _as_fake(self, values: Tensor) -> Tensor:
        with self._fake:
            fake = torch.empty_strided(values.shape, values.stride(), dtype=values.dtype)
        self._values.set(fake, values)
        return fake

    def _gives_values(self, func: OpOverload, tensors: Sequence[Tensor], out: object) -> bool:
        """Whether the values of the result are to be computed, random ones filling in for others."""
        name = func._overloadpacket.__name__
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if not (results or func._schema.is_mutable) or name.startswith("empty"):
            return False
        if any(x.numel() > _MAX_ELEMENTS for x in (*results, *tensors)):
            return False
        known = [x for x in tensors if self._values.get(x) is not None]
        if len(known) == len(tensors):
            return True
        in_backward = torch._C._current_graph_task_id() != -1
        if (
            in_backward
            or has_formula(func)
            or name in _COSTLY
            or name.startswith(("_foreach", "_amp"))
        ):
            return False
        if func._schema.is_mutable and self._values.get(tensors[0]) is None:
            return False
        return bool(known) or name in _DECISIONS


def _depends_on_values(func: OpOverload, tensors: Sequence[Tensor]) -> bool:
    """Whether the shape of the result, or the result itself, is not known without values."""
    name = func._overloadpacket.__name__
    if name == "index":  # it is marked, but depends on values only if masks are among the indexes
        return any(x.dtype in (torch.bool, torch.uint8) for x in tensors[1:])
    tags = torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output
    return name in _DYNAMIC or any(tag in func.tags for tag in tags)


class _ToNumPy(TorchFunctionMode):
    """Fake tensors become arrays of their values."""

    def __init__(self, values: _Values) -> None:
        super().__init__()
        self._values = values

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not Tensor.numpy or not isinstance(args[0], FakeTensor):
            return func(*args, **(kwargs or {}))
        values = cast(Tensor, self._values.make(args[0]))
        with unset_fake_temporarily():
            return func(values, **(kwargs or {}))


@contextmanager
def fake_run() -> Iterator[None]:
    """Inside this context, what makes or takes tensors works on fake ones, always with the same
    random numbers.

    Raises:
        ValueError: an operator cannot be run without data.
    """
    fake, values = FakeTensorMode(allow_non_fake_inputs=True), _Values()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            with fake, _KnownValues(fake, values), _ToNumPy(values):
                yield
        except _FAILURES as error:
            raise ValueError(
                f"this model cannot be run on fake tensors, which have no data: {error}"
            ) from error
