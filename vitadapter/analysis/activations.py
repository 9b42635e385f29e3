"""What each part of a model keeps for the backward pass."""

from collections import Counter
from collections.abc import Mapping

import torch
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from tabulate import tabulate
from torch import Tensor

from vitadapter.analysis.fake_run import fake_run
from vitadapter.analysis.model import part_of, parts_of, running_modules
from vitadapter.analysis.steps import Workload
from vitadapter.engine.building import build

__all__ = ["saved_activations", "saved_table"]


def saved_activations(cfg: DictConfig, workload: Workload) -> Counter[str]:
    """Adds up the tensors that autograd saves in the forward pass, without their memory.

    Each storage counts once, for the part that saves it first. Parameters and buffers do not count.

    Args:
        cfg: the whole config; `train.amp` is used.
        workload: the images.

    Returns:
        Bytes by part, such as "backbone.bottom_up.net"; "" is what is outside of all parts.

    Raises:
        ValueError: the model cannot be built, or not run on fake tensors.
    """
    images, amp = workload.images(cfg), cfg.train.amp
    saved: Counter[str] = Counter()
    with fake_run():
        model = build(cfg.model, "model").train()
        parts = parts_of(model)
        # The storages themselves, so that none is freed and its address used again.
        seen = {_address(t): t.untyped_storage() for t in (*model.parameters(), *model.buffers())}
        with running_modules(model, with_layers=False) as running:

            def pack(tensor: Tensor) -> Tensor:
                if _address(tensor) not in seen:
                    seen[_address(tensor)] = tensor.untyped_storage()
                    part = part_of(running[-1], parts) if running else ""
                    saved[part] += tensor.untyped_storage().nbytes()
                return tensor

            with (
                torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
                torch.autocast("cpu", getattr(torch, amp.dtype), enabled=amp.enabled),
                EventStorage(0),
            ):
                losses = model(images)
        del losses
    return saved


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def saved_table(saved: Mapping[str, int], workload: Workload) -> str:
    """The result of `saved_activations` as text."""
    named = [(part or "other", size) for part, size in saved.items()]
    rows = [
        (name, f"{size / 2**20:.1f}") for name, size in [*named, ("total", sum(saved.values()))]
    ]
    height, width = workload.size
    header = ("part", f"kept for the backward pass of {workload.batch} x {height} x {width} (MiB)")
    align = ("left", "right")
    return tabulate(rows, header, tablefmt="github", disable_numparse=True, colalign=align)
