"""What the main process does for all, or has and gives to all."""

from collections.abc import Callable

from detectron2.utils import comm
from torch import distributed, nn

__all__ = ["agree", "share_buffers"]


def agree(action: Callable[[], None]) -> None:
    """Lets the main process act; if it refuses, all processes do.

    Otherwise, the others would wait for a process that has ended.

    Raises:
        ValueError: in all processes, if `action` raises one.
    """
    refusal: str | None = None
    if comm.is_main_process():
        try:
            action()
        except ValueError as error:
            refusal = str(error)
    refusal = comm.all_gather(refusal)[0]
    if refusal is not None:
        raise ValueError(refusal)


def share_buffers(model: nn.Module) -> None:
    """Gives the buffers of the main process to all, in place.

    Each process has batch statistics of its own images. Those of the main process are saved, so
    that only with these, an evaluation is one of the weights in the checkpoint.

    Args:
        model: the same in all processes.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)
