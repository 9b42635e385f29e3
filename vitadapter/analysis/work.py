"""Counts the work that a model gives to a GPU: kernel launches, bytes and FLOPs, without a GPU.

Each operator that is dispatched counts as one kernel, which reads its inputs from memory once and
writes its outputs once. PyTorch's operators do at least that, so that the least time on a GPU
follows. Attention counts as one fused kernel. Tensors are fake (they have shapes, but no data), so
that the largest models cost nothing.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitadapter.analysis.fake_run import fake_run
from vitadapter.analysis.flops import flops_of
from vitadapter.analysis.model import markdown, part_of, parts_of, running_modules
from vitadapter.analysis.steps import Workload
from vitadapter.engine.building import build
from vitadapter.layers.fast import as_on_gpu

__all__ = ["GPU", "GPUS", "Call", "Work", "count_work", "step_work", "work_table"]

aten = torch.ops.aten

# Of the operators that run more than one kernel. How many it is for a convolution's backward pass
# follows from the gradients that are asked for.
_LAUNCHES = {
    aten.native_layer_norm_backward: 2,
    aten.native_group_norm_backward: 2,
    aten.native_batch_norm: 2,
    aten.native_batch_norm_backward: 2,
    aten.slice_backward: 2,
    aten.select_backward: 2,
    torch.ops.vitadapter.add_and_norm_backward: 2,
}
# Operators that do not read their first argument, but write it, or make another of its kind.
_NOT_READ = {aten.copy_, aten.fill_, aten.zero_, aten.full_like, aten.ones_like, aten.zeros_like}
_NOT_READ |= {aten.new_full, aten.new_ones, aten.new_zeros}
# Besides what PyTorch itself takes for a view.
_VIEWS = {aten._unsafe_view, aten.detach, aten.lift_fresh}
_PART = "part"  # of the metadata of autograd's nodes


@dataclass(frozen=True)
class GPU:
    """What bounds the speed of a GPU.

    Attributes:
        bandwidth: of its memory, in bytes per second.
        half: multiply-adds per second of dense products in bfloat16, added up in float32.
        single: multiply-adds per second in float32, without TF32.
    """

    bandwidth: float
    half: float
    single: float


# NVIDIA's data sheets: "H100 Tensor Core GPU" (SXM5), "A100 Tensor Core GPU" (SXM4, 80 GB), the
# white paper "Ada GPU Architecture" (RTX 4090), and "L4 Tensor Core GPU". A multiply-add is two of
# their floating-point operations, and their figures "with sparsity" are halved.
GPUS: Mapping[str, GPU] = {
    "H100": GPU(3350e9, 989e12 / 2, 67e12 / 2),
    "A100": GPU(2039e9, 312e12 / 2, 19.5e12 / 2),
    "4090": GPU(1008e9, 165e12 / 2, 82.6e12 / 2),
    "L4": GPU(300e9, 121e12 / 2, 30.3e12 / 2),
}
# Seconds from one launch to the next, if the kernels are small and not in a CUDA graph: measured in
# "Getting Started with CUDA Graphs" (NVIDIA's technical blog, 2019). Python adds to it.
LAUNCH_SECONDS = 3.8e-6


@dataclass(frozen=True)
class Call:
    """An operator that ran.

    Attributes:
        part: of the model.
        operator: its name, without the namespace "aten".
        launches: kernels.
        read, written: bytes.
        flops: a multiply-add is one.
        is_half: whether it computes in half precision.
    """

    part: str
    operator: str
    launches: int
    read: int
    written: int
    flops: int = 0
    is_half: bool = False

    def seconds(self, gpu: GPU) -> float:
        """The least time for its bytes and FLOPs."""
        peak = gpu.half if self.is_half else gpu.single
        return max((self.read + self.written) / gpu.bandwidth, self.flops / peak)


class Work(list[Call]):
    """Calls, and their sums."""

    @property
    def launches(self) -> int:
        """Kernels."""
        return sum(call.launches for call in self)

    @property
    def bytes(self) -> int:
        """Bytes that are read and written."""
        return sum(call.read + call.written for call in self)

    @property
    def flops(self) -> int:
        """FLOPs; a multiply-add is one."""
        return sum(call.flops for call in self)

    def seconds(self, gpu: GPU) -> float:
        """The least time: kernels one after the other, or launches if those take longer."""
        return max(sum(call.seconds(gpu) for call in self), self.launches * LAUNCH_SECONDS)

    def by(self, attribute: str) -> dict[str, "Work"]:
        """Splits the calls by `part` or `operator`, those with the most bytes first."""
        groups: dict[str, Work] = {}
        for call in self:
            groups.setdefault(getattr(call, attribute), Work()).append(call)
        return dict(sorted(groups.items(), key=lambda item: -item[1].bytes))


def _bytes(tensor: Tensor) -> int:
    """Bytes of the different elements: those of an expanded axis are the same."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(n if stride or n == 0 else 1 for n, stride in sizes) * tensor.element_size()


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _written(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that an operator changes."""
    changed: list[Tensor] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.is_write:
            changed += _tensors(args[i] if i < len(args) else kwargs.get(argument.name))
    return changed


def _launches(func: OpOverload, args: Sequence[Any]) -> int:
    packet = func._overloadpacket
    if packet is aten.convolution_backward:
        return sum(args[-1])
    return _LAUNCHES.get(packet, 1)


class _Counter(TorchDispatchMode):
    """Records the operators."""

    def __init__(self, work: Work, part: Callable[[], str]) -> None:
        super().__init__()
        self._work = work
        self._part = part

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        results = _tensors(out)
        is_free = func.is_view or packet in _VIEWS or "empty" in packet.__name__
        if is_free or not results:
            return out
        changed = _written(func, args, kwargs)
        inputs = _tensors((args, kwargs))
        if packet in _NOT_READ:
            inputs = inputs[1:]
        if not changed and any(x is y for x in inputs for y in results):
            return out  # nothing to do, such as a conversion to the same type
        call = Call(
            self._part(),
            packet._qualified_op_name.removeprefix("aten::"),
            _launches(func, args),
            read=sum(map(_bytes, inputs)),
            written=sum(map(_bytes, changed or results)),
            flops=flops_of(func, args, kwargs, out) or 0,
            is_half=any(x.dtype in (torch.float16, torch.bfloat16) for x in (*inputs, *results)),
        )
        self._work.append(call)
        return out


class _AsOnGPU(TorchFunctionMode):
    """Runs on the CPU's fake tensors what a GPU would run, and notes the parts of gradients.

    Args:
        part: the part of the model that is running.
    """

    def __init__(self, part: Callable[[], str]) -> None:
        super().__init__()
        self._part = part

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.backward and all(v is None or v is False for v in kwargs.values()):
            # PyTorch's own function would leave this mode, in which layers have to run again.
            with self:
                return _engine_run_backward(
                    args, (torch.ones_like(args[0]),), False, False, (), True, accumulate_grad=True
                )
        if func is F.scaled_dot_product_attention:
            out = _fused_attention(*args, **kwargs)
        elif func in (F.layer_norm, F.group_norm) and torch.is_autocast_enabled("cpu"):
            # On GPUs, autocast computes norms in float32.
            with torch.autocast("cpu", enabled=False):
                out = func(args[0].float(), *args[1:], **kwargs)
        else:
            out = func(*args, **kwargs)
        for tensor in _tensors(out):
            _label(tensor.grad_fn, self._part())
        return out


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: Any
) -> Tensor:
    """Attention in the kernel that GPUs have for any mask and its gradient."""
    inputs = [query, key, value]
    if torch.is_autocast_enabled("cpu"):
        inputs = [x.to(torch.get_autocast_dtype("cpu")) for x in inputs]
    bias = attn_mask
    if bias is not None:
        if bias.dtype is torch.bool:
            bias = torch.zeros(bias.shape, dtype=inputs[0].dtype).masked_fill(~bias, float("-inf"))
        bias = bias.to(inputs[0].dtype).expand(*query.shape[:-1], key.shape[-2])
    attend = aten._scaled_dot_product_efficient_attention
    return attend(*inputs, bias, torch.is_grad_enabled(), scale=rest.get("scale"))[0]


def _metadata(node: Any) -> dict[str, str]:
    return node.metadata  # which PyTorch's types take for a method


def _label(node: Any, part: str) -> None:
    """Notes the part of a node of autograd and of those before it that have none yet."""
    stack = [node]
    while stack:
        node = stack.pop()
        if node is not None and _PART not in _metadata(node):
            _metadata(node)[_PART] = part
            stack += [before for before, _ in node.next_functions]


@contextmanager
def _counting(model: nn.Module, keys: Sequence[str]) -> Iterator[Work]:
    """Yields the work of what runs inside this context."""
    work = Work()
    with running_modules(model, with_layers=False) as running:

        def part() -> str:
            if running:
                return part_of(running[-1], keys)
            node = torch._C._current_autograd_node()
            return "" if node is None else _metadata(node).get(_PART, "")

        with as_on_gpu(), _AsOnGPU(part), _Counter(work, part):
            yield work


def count_work(
    model: nn.Module,
    run: Callable[[], object],
    *,
    dtype: torch.dtype | None = torch.bfloat16,
    parts: Sequence[str] = (),
) -> Work:
    """Counts the work of `run`.

    What runs needs its memory, unless its tensors are fake (`model` is made, and this is called,
    inside `fake_run` or PyTorch's `FakeTensorMode`) or, without autocast, on the meta device.

    Args:
        model: what runs.
        run: runs it: its forward pass, and the backward pass if that is to be counted.
        dtype: of autocast; None for none.
        parts: names of the modules whose work is listed alone.
    """
    autocast = nullcontext() if dtype is None else torch.autocast("cpu", dtype)
    with _counting(model, parts) as work, autocast:
        run()
    return work


def step_work(cfg: DictConfig, workload: Workload) -> Work:
    """Counts the work of the forward and backward pass of a training iteration.

    Args:
        cfg: the whole config, with the precision `train.amp`.
        workload: the images.

    Raises:
        ValueError: the model cannot be built, or not run on fake tensors.
    """
    images, amp = workload.images(cfg), cfg.train.amp
    with fake_run(), EventStorage(0):
        model = build(cfg.model, "model").train()
        keys = parts_of(model)

        def step() -> None:
            losses = model(images)
            with torch.autocast("cpu", enabled=False):
                sum(losses.values()).backward()

        dtype = getattr(torch, amp.dtype) if amp.enabled else None
        return count_work(model, step, dtype=dtype, parts=keys)


def work_table(work: Work, title: str, *, operators: int = 12) -> str:
    """The work as text: by part, of the costliest operators, and the least time on each GPU.

    Args:
        work: the calls.
        title: what they are, for the header.
        operators: how many operators are listed.
    """

    def rows(groups: Mapping[str, Work]) -> list[tuple[str, ...]]:
        return [
            (
                name or "other",
                str(calls.launches),
                f"{sum(call.read for call in calls) / 1e9:.3f}",
                f"{sum(call.written for call in calls) / 1e9:.3f}",
                f"{calls.flops / 1e9:.1f}",
            )
            for name, calls in groups.items()
        ]

    units = "launches", "GB read", "GB written", "GFLOPs"
    top = dict(list(work.by("operator").items())[:operators])
    seconds = [(name, f"{work.seconds(gpu) * 1e3:.1f}") for name, gpu in GPUS.items()]
    return "\n\n".join(
        [
            markdown(rows({**work.by("part"), "total": work}), (title, *units)),
            markdown(rows(top), ("operator", *units)),
            markdown(seconds, ("GPU", "least ms")),
            f"Each operator reads its inputs and writes its outputs once; a launch takes "
            f"{LAUNCH_SECONDS * 1e6:.1f} us. A multiply-add is one FLOP.",
        ]
    )
