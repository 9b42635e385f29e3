"""When one process of a run fails, all of them stop and say why.

A process that fails, or is stopped by a signal, leaves a note in the store by which the processes
have met, and ends. The others find it when their connection to that process breaks. With NCCL they
may not notice, and wait until their launcher ends them. Therefore, faults that can be expected are
agreed on before anything else is exchanged: see `share_failure`.
"""

import contextlib
import json
import signal
import socket
import traceback
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from detectron2.utils import comm
from torch import distributed
from torch.distributed.distributed_c10d import _get_default_store

__all__ = [
    "LostProcessError",
    "OtherProcessError",
    "first_sentence",
    "is_failure_of_other",
    "share_failure",
    "tell_of_failures",
]

# Where gloo's messages say that they come from.
_GLOO = "/gloo/transport/"
_KEY = "vitadapter/failure"


class OtherProcessError(RuntimeError):
    """Another process of the run has failed, or was stopped by a signal.

    The message has its rank, its machine, and the traceback or the signal.
    """


class LostProcessError(RuntimeError):
    """Another process of the run has ended without a word, such as by SIGKILL."""


def _signal_of(error: BaseException) -> str | None:
    """The name of the signal that an exception stands for, see `StopSignals`."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT.name
    is_stop = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
    return signal.SIGTERM.name if is_stop else None


class _Failure(NamedTuple):
    """What a process tells the others when it fails, or is stopped."""

    rank: int
    host: str
    reason: str
    summary: str  # the reason behind the error's type
    text: str  # the traceback
    images: list[str]
    is_divergence: bool
    stopped_by: str | None  # the signal's name, if it was one

    @classmethod
    def of_this_process(cls, error: BaseException, images: Sequence[str] = ()) -> "_Failure":
        return cls(
            comm.get_rank(),
            socket.gethostname(),
            str(error),
            traceback.format_exception_only(error)[-1].strip(),
            "".join(traceback.format_exception(error)).rstrip(),
            list(images),
            isinstance(error, FloatingPointError),
            _signal_of(error),
        )

    def as_error(self) -> OtherProcessError:
        if self.stopped_by is not None:
            return OtherProcessError(
                f"process {self.rank} on {self.host} was stopped by {self.stopped_by}"
            )
        return OtherProcessError(
            f"process {self.rank} on {self.host} failed: {self.summary}\n{self.text}"
        )


def _anywhere(flag: bool) -> bool:
    """Whether a flag is set in any process; cheaper than to gather objects."""
    if comm.get_world_size() == 1:
        return flag
    flags = torch.tensor([flag], dtype=torch.uint8)
    distributed.all_reduce(flags, distributed.ReduceOp.MAX, comm._get_global_gloo_group())
    return bool(flags.item())


def share_failure(error: Exception | None, iteration: int, images: Sequence[str] = ()) -> None:
    """Stops all processes if one has failed. All of them have to call it, at the same point.

    Args:
        error: what has failed in this process; None if nothing has.
        iteration: for the message of a FloatingPointError.
        images: what a FloatingPointError comes from.

    Raises:
        FloatingPointError: in all processes, if that has stopped at least one, and nothing else has
            stopped another; names the images of those.
        Exception: `error`, if it is another one.
        OtherProcessError: something else has stopped another process.
    """
    if not _anywhere(error is not None):
        return
    failure = None if error is None else _Failure.of_this_process(error, images)
    failures = [found for found in comm.all_gather(failure) if found is not None]
    if error is not None and not isinstance(error, FloatingPointError):
        raise error
    for found in failures:
        if not found.is_divergence:
            raise found.as_error()
    named = [image for found in failures for image in found.images]
    raise FloatingPointError(
        f"{failures[0].reason} at iteration {iteration}, images: {', '.join(named)}"
    )


def _leave_note(error: BaseException) -> None:
    """Says to the others why this process ends; the first to end counts."""
    note = json.dumps(_Failure.of_this_process(error))
    with contextlib.suppress(RuntimeError, ValueError):  # the store may have ended, too
        _get_default_store().compare_set(_KEY, "", note)


def _find_note() -> _Failure | None:
    """What another process has said.

    Raises:
        RuntimeError, ValueError: the store has ended, with the process that kept it.
    """
    store = _get_default_store()
    note = _Failure(*json.loads(store.get(_KEY))) if store.check([_KEY]) else None
    return None if note is None or note.rank == comm.get_rank() else note


def _is_loss(error: Exception) -> bool:
    """Whether an error says that a connection to another process is broken."""
    is_of_connection = isinstance(error, distributed.DistError) or _GLOO in str(error)
    return is_of_connection and comm.get_world_size() > 1


def is_failure_of_other(error: Exception) -> bool:
    """Whether an error comes from another process that has failed, or has ended without a word.

    Launchers then end the processes that are left by a signal, which is not the reason why these
    end. It is the reason if the other process has been stopped by a signal, too, which it says
    unless nobody can be asked any more.

    Args:
        error: what this process has met.
    """
    is_lost = _is_loss(error)
    if not is_lost and not isinstance(error, OtherProcessError):
        return False
    try:
        note = _find_note()
    except (RuntimeError, ValueError):
        return False
    # Without a note, a process that failed is still there: no launcher has seen it end.
    return is_lost if note is None else note.stopped_by is None


def first_sentence(error: BaseException) -> str:
    """What an error of PyTorch's processes says, without advice and without places in gloo's code.

    Args:
        error: with any message.
    """
    first = (str(error).splitlines() or [""])[0].partition(". ")[0]
    return first.partition(_GLOO)[2] or first or type(error).__name__


def _reason_of_loss(error: Exception) -> Exception:
    with contextlib.suppress(RuntimeError, ValueError):
        if (note := _find_note()) is not None:
            return note.as_error()
    return LostProcessError(
        f"process {comm.get_rank()} on {socket.gethostname()} has lost another process of the run, "
        "which has ended, or does not answer. What that one has printed, or its log (log.txt, "
        f"log.txt.rank1, ...), may say why ({first_sentence(error)})"
    )


@contextlib.contextmanager
def tell_of_failures() -> Iterator[None]:
    """Tells the other processes why this one ends, and says why another one was lost.

    Raises:
        OtherProcessError, LostProcessError: instead of what PyTorch raises where another process
            has ended.
    """
    try:
        yield
    except (OtherProcessError, LostProcessError):
        raise
    except Exception as error:
        if _is_loss(error):
            raise _reason_of_loss(error) from error
        if comm.get_world_size() > 1:
            _leave_note(error)
        raise
    except (SystemExit, KeyboardInterrupt) as stop:
        if comm.get_world_size() > 1 and _signal_of(stop) is not None:
            _leave_note(stop)
        raise
