"""Refuses batch norms that would fail on the first training batch."""

import math

import torch
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["check_batch_norms"]


def _check_synchronised(model: nn.Module, device: str) -> None:
    """PyTorch's SyncBatchNorm works on GPUs only, and would fail in the first iteration."""
    synced = [n for n, m in model.named_modules() if isinstance(m, nn.SyncBatchNorm)]
    processes = comm.get_world_size()
    if synced and processes > 1 and torch.device(device).type == "cpu":
        raise ValueError(
            f"norm='SyncBN' ({synced[0]} and others) needs GPUs, got train.device={device} with "
            f"{processes} processes: set another, for instance "
            "model.backbone.bottom_up.norm=naiveSyncBN (or =BN)"
        )


def _values_of(norm: nn.Module, batch_size: int) -> float:
    """Number of values that each mean of a norm is taken over, on maps of 1 x 1; else infinity."""
    if isinstance(norm, nn.GroupNorm):
        return batch_size * (norm.num_channels // norm.num_groups)
    if not isinstance(norm, _BatchNorm) or not norm.training:
        return math.inf
    synchronised = isinstance(norm, nn.SyncBatchNorm | NaiveSyncBatchNorm)
    return batch_size * comm.get_world_size() if synchronised else batch_size


def _check_pooled(model: nn.Module, batch_size: int) -> None:
    """A global pooling leaves one value per channel and image, and one value has no variance."""
    for name, module in model.named_modules():
        if 1 not in getattr(module, "pool_scales", ()):
            continue
        for inner, norm in module.named_modules(prefix=name):
            if _values_of(norm, batch_size) < 2:
                head = name.rpartition(".")[0]
                raise ValueError(
                    f"the norm {inner} ({type(norm).__name__}) follows a global pooling and "
                    f"needs at least 2 images at a time, got {batch_size} "
                    "(dataloader.train.total_batch_size / processes / train.accumulate_steps): "
                    "set a larger dataloader.train.total_batch_size=..., a smaller "
                    f"train.accumulate_steps=..., or another norm, for instance "
                    f"model.{head}.norm=GN with more than 32 channels, or =LN"
                )


def check_batch_norms(model: nn.Module, device: str, batch_size: int | None) -> None:
    """Refuses norms that cannot work with the device, the processes or the batch size.

    Args:
        model: the model to train.
        device: the device to train on.
        batch_size: number of images in a forward pass of this process; None if it is unknown.

    Raises:
        ValueError: the message names the override to change.
    """
    _check_synchronised(model, device)
    if batch_size is not None:
        _check_pooled(model, batch_size)
