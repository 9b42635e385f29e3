"""Predicts the memory of training and inference on fake tensors: no GPU, and hardly any memory."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn

from vitadapter.analysis.fake_run import fake_run
from vitadapter.analysis.steps import KINDS, Steps, Workload
from vitadapter.engine.parallel import sharded_groups
from vitadapter.engine.settings import PositiveInt, check_value
from vitadapter.layers.fast import as_on_gpu

__all__ = [
    "PARALLEL",
    "MemoryEstimate",
    "Peak",
    "estimate_memory",
    "training_peak",
]

GIB = 2**30
Peak = Counter[str]
"""Bytes at the time of the peak, by kind: those of `KINDS` and `communication`."""


class Layout(NamedTuple):
    """Bytes of the parts of a model that processes exchange.

    Attributes:
        trained: of the gradients of all parameters.
        largest_group: of the largest of `sharded_groups`.
        largest_gradient: of the gradients of the group that has most of them.
        rest: of the parameters outside of these groups.
        rest_trained: of their gradients.
    """

    trained: int
    largest_group: int
    largest_gradient: int
    rest: int
    rest_trained: int


def _layout(model: nn.Module) -> Layout:
    def size(module: nn.Module) -> int:
        return sum(parameter.nbytes for parameter in module.parameters())

    def trained(module: nn.Module) -> int:
        return sum(p.nbytes for p in module.parameters() if p.requires_grad)

    groups = sharded_groups(model)
    sizes, gradients = [size(group) for group in groups], [trained(group) for group in groups]
    return Layout(
        trained(model),
        max(sizes, default=0),
        max(gradients, default=0),
        size(model) - sum(sizes),
        trained(model) - sum(gradients),
    )


def _ddp(peak: Peak, layout: Layout, ranks: int) -> Peak:
    """Every process has everything, and DDP's buckets a copy of the gradients."""
    return peak + Counter(communication=layout.trained)


def _fsdp2(peak: Peak, layout: Layout, ranks: int) -> Peak:
    """Every process has a part of all weights; whole are the running group, the next, and the rest.

    What is outside of all groups stays whole from the forward pass to the end of the backward pass.
    Gradients are whole until those of a group are complete.
    """
    divided = ("parameters", "gradients", "optimizer", "average")
    kept = {kind: size // ranks if kind in divided else size for kind, size in peak.items()}
    whole = layout.rest + 2 * layout.largest_group
    gradients = layout.rest_trained + layout.largest_gradient
    return Counter(kept) + Counter(communication=whole + gradients)


PARALLEL: Mapping[str, Callable[[Peak, Layout, int], Peak]] = {"ddp": _ddp, "fsdp2": _fsdp2}
"""How several processes share the work: what the peak of one alone becomes."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The peaks of memory of one GPU.

    Attributes:
        workload: the images.
        training: the peak of an iteration of training, by kind.
        inference: the peak of predicting the same images.
    """

    workload: Workload
    training: Peak
    inference: Peak

    def table(self) -> str:
        """The figures as text, in GiB."""
        rows = [
            (kind, f"{self.training[kind] / GIB:.2f}", f"{self.inference[kind] / GIB:.2f}")
            for kind in (*KINDS, "communication")
        ]
        training, inference = self.training.total(), self.inference.total()
        rows.append(("peak", f"{training / GIB:.2f}", f"{inference / GIB:.2f}"))
        height, width = self.workload.size
        header = f"{self.workload.batch} x {height} x {width}", "training (GiB)", "inference (GiB)"
        align = ("left", "right", "right")
        return tabulate(rows, header, tablefmt="github", disable_numparse=True, colalign=align)


def training_peak(cfg: DictConfig, workload: Workload, *, on_gpu: bool = True) -> Peak:
    """Predicts the peak of memory of an iteration of training in one process.

    Args:
        cfg: the whole config. Mixed precision, activation checkpointing, frozen nets, gradient
            accumulation and averaged weights are as it says.
        workload: the images of a micro-batch.
        on_gpu: whether the optimizer updates all weights at once, and layers keep what they give,
            as on a GPU only.

    Returns:
        The peak by kind.

    Raises:
        ValueError: the model cannot be built, or not run on fake tensors.
    """
    images = workload.images(cfg)
    with fake_run(), as_on_gpu() if on_gpu else nullcontext():
        return Steps(cfg, images, on_gpu=on_gpu).count_training()


def estimate_memory(
    cfg: DictConfig, workload: Workload, *, ranks: int = 1, parallel: str = "ddp"
) -> MemoryEstimate:
    """Predicts the peaks of memory of a GPU, in training and in inference.

    Args:
        cfg, workload: as for `training_peak`; the images are those of one process.
        ranks: number of processes.
        parallel: how they share the work, one of `PARALLEL`.

    Raises:
        ValueError: `ranks` is not positive, or 1 with FSDP2, `parallel` is not known, or the model
            cannot be built or not run on fake tensors.
    """
    check_value("ranks", PositiveInt, ranks)
    if parallel not in PARALLEL:
        raise ValueError(f"parallel must be {' or '.join(PARALLEL)}, got {parallel!r}")
    if parallel == "fsdp2" and ranks == 1:
        raise ValueError("fsdp2 divides a model between at least 2 GPUs, got ranks=1")
    images = workload.images(cfg)
    with fake_run(), as_on_gpu():
        steps = Steps(cfg, images, on_gpu=True)
        training, inference = steps.count_training(), steps.count_inference()
        layout = _layout(steps.model)
    if ranks > 1:
        training = PARALLEL[parallel](training, layout, ranks)
    return MemoryEstimate(workload, training, inference)
