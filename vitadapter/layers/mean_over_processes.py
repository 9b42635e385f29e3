"""The normaliser of a loss, which is the same in every process."""

import vitadapter.detectron2_required  # noqa: F401

# isort: split
import torch
from detectron2.utils import comm
from torch import Tensor

__all__ = ["mean_over_processes"]


def mean_over_processes(value: Tensor) -> Tensor:
    """Averages a number over all processes of the job, without gradient.

    A loss that each process divides by its own number of objects would give objects a
    different weight in each process, because gradients are averaged over the processes.

    Args:
        value: a scalar (), on the device of the process group.
    """
    processes = comm.get_world_size()
    value = value.detach()
    if processes == 1:
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / processes
