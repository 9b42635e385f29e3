"""Work that the main process does for all, and whose refusal stops all of them."""

from collections.abc import Callable

from detectron2.utils import comm

__all__ = ["agree"]


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
