"""When one process of a run fails, all of them stop and say why.

A process that fails leaves a note in the store by which the processes have met, and ends. The
others find it when their connection to that process breaks. With NCCL they may not notice, and wait
until their launcher ends them. Therefore, faults that can be expected are agreed on before anything
else is exchanged: see `share_failure`.
"""

import contextlib
import json
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
    "has_other_failed",
    "share_failure",
    "tell_of_failures",
]

# Where gloo's messages say that they come from.
_GLOO = "/gloo/transport/"
_KEY = "vitadapter/failure"


class OtherProcessError(RuntimeError):
    """Another process of the run has failed. The message has its rank, machine and traceback."""


class LostProcessError(RuntimeError):
    """Another process of the run has ended without a word, such as by SIGKILL."""


class _Failure(NamedTuple):
    """What a process tells the others when it fails."""

    rank: int
    host: str
    reason: str
    summary: str  # the reason behind the error's type
    text: str  # the traceback
    images: list[str]
    is_divergence: bool

    @classmethod
    def of_this_process(cls, error: Exception, images: Sequence[str] = ()) -> "_Failure":
        return cls(
            comm.get_rank(),
            socket.gethostname(),
            str(error),
            traceback.format_exception_only(error)[-1].strip(),
            "".join(traceback.format_exception(error)).rstrip(),
            list(images),
            isinstance(error, FloatingPointError),
        )

    def as_error(self) -> OtherProcessError:
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


def _leave_note(error: Exception) -> None:
    """Says to the others why this process ends; the first to fail counts."""
    note = json.dumps(_Failure.of_this_process(error))
    with contextlib.suppress(RuntimeError, ValueError):  # the store may have ended, too
        _get_default_store().compare_set(_KEY, "", note)


def _find_note() -> _Failure | None:
    with contextlib.suppress(RuntimeError, ValueError):
        store = _get_default_store()
        if store.check([_KEY]):
            return _Failure(*json.loads(store.get(_KEY)))
    return None


def has_other_failed() -> bool:
    """Whether another process of the run has failed and said so."""
    failure = _find_note() if comm.get_world_size() > 1 else None
    return failure is not None and failure.rank != comm.get_rank()


def first_sentence(error: BaseException) -> str:
    """What an error of PyTorch's processes says, without advice and without places in gloo's code.

    Args:
        error: with any message.
    """
    first = (str(error).splitlines() or [""])[0].partition(". ")[0]
    return first.partition(_GLOO)[2] or first or type(error).__name__


def _reason_of_loss(error: Exception) -> Exception:
    failure = _find_note()
    if failure is not None and failure.rank != comm.get_rank():
        return failure.as_error()
    return LostProcessError(
        f"process {comm.get_rank()} on {socket.gethostname()} has lost another process of the run, "
        "which has ended, or does not answer. What that one has printed, or its log (log.txt, "
        f"log.txt.rank1, ...), may say why ({first_sentence(error)})"
    )


@contextlib.contextmanager
def tell_of_failures() -> Iterator[None]:
    """Tells the other processes of an error in this one, and says why another one was lost.

    Raises:
        OtherProcessError, LostProcessError: instead of what PyTorch raises where another process
            has ended.
    """
    try:
        yield
    except (OtherProcessError, LostProcessError):
        raise
    except Exception as error:
        if comm.get_world_size() > 1:
            if isinstance(error, distributed.DistError) or _GLOO in str(error):
                raise _reason_of_loss(error) from error
            _leave_note(error)
        raise
