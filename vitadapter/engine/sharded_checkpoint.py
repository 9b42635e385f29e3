"""Saves checkpoints of which each process has a part, while training goes on."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.utils import comm
from torch import distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from vitadapter.checkpoint.sharded import (
    SHARDED_SUFFIX,
    STATE_NAME,
    cause_of,
    named_tensors,
    without_tensors,
)
from vitadapter.engine.checkpoint import (
    AtomicCheckpointer,
    find_not_finite,
    remove,
)
from vitadapter.engine.failures import first_sentence

__all__ = ["ShardedCheckpointer", "recover"]

_PARTIAL_NAME = "sharded_checkpoint.partial"
# What is replaced is set aside under its name and this, until the new one has its name.
_OLD_SUFFIX = ".old"
# Processes that stop for the same reason come to save at about the same time. One that fails alone
# ends after this, and with it the others, which wait for its part of the weights.
_PATIENCE = timedelta(seconds=5)


class ShardedCheckpointer(AtomicCheckpointer):
    """Saves folders that all processes write together, each its part, in the background.

    Training waits until its state is copied to the CPU's memory, and for the previous save if that
    is not finished. A folder gets its name once all of it is on the disk. Any number of processes
    can read it. All processes have to call `save`, `save_weights`, `can_save` and `wait` together.

    Args:
        model, save_dir, checkpointables: as of Detectron2's checkpointer.
    """

    suffix = SHARDED_SUFFIX

    def __init__(self, model: nn.Module, save_dir: str = "", **checkpointables: object) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self._pending: Future[Any] | None = None
        self._is_pending_last = False  # whether it is a checkpoint to continue from
        # Of their own, since a thread exchanges plans while training exchanges gradients, and while
        # processes that stop come together: messages of both would be taken for each other.
        self._group = _own_group()
        self._meeting = _own_group()

    def save(self, name: str, **extra: object) -> None:
        """See `AtomicCheckpointer`; returns before the folder is complete.

        Raises:
            FloatingPointError: a weight, an average or the optimizer's state is infinite or NaN.
            OSError: the first process cannot make the folder.
        """
        if self.save_dir:
            self._write(name, self._state(extra), is_last=True)
            self._note_saved(extra)

    def save_weights(self, name: str, model: nn.Module, **extra: object) -> None:
        """See `AtomicCheckpointer`; returns before the folder is complete.

        Raises:
            FloatingPointError: a weight is infinite or NaN.
            OSError: the first process cannot make the folder.
        """
        if self.save_dir:
            self._write(name, {"model": model.state_dict(), **extra})

    def can_save(self) -> bool:
        """See `AtomicCheckpointer`."""
        if self._meeting is None:
            return True
        try:
            distributed.monitored_barrier(self._meeting, timeout=_PATIENCE)
        except RuntimeError as error:
            self.logger.error(
                "Nothing is saved, since not all processes, which have a part of the weights each, "
                "have come to do so: %s",
                str(error).splitlines()[0],
            )
            return False
        return True

    def wait(self) -> None:
        """See `AtomicCheckpointer`."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except (CheckpointException, OSError, RuntimeError) as error:
            if self._is_pending_last:
                self.saved_iteration = None
            reason = first_sentence(cause_of(error))
            raise OSError(f"the last checkpoint could not be written: {reason}") from error

    def _write(self, name: str, data: Mapping[str, object], *, is_last: bool = False) -> None:
        target = Path(self.save_dir, f"{name}{self.suffix}")
        if wrong := find_not_finite(data):
            raise FloatingPointError(f"{wrong} is infinite or NaN: {target} is not written")
        try:
            self.wait()
        except OSError as error:  # there may be room for this one
            self.logger.error("%s", error)
        # The first process alone gives folders their names, and may have failed alone.
        self.saved_iteration = comm.all_gather(self.saved_iteration)[0]
        self.logger.info("Saving checkpoint to %s", target)
        aside = target.with_name(_PARTIAL_NAME)
        self._make(aside)
        saved = dcp.async_save(
            _own_tensors(data),
            storage_writer=dcp.FileSystemWriter(aside),
            process_group=self._group,
            no_dist=self._group is None,
        )
        # Newer PyTorch returns it together with the copying to the CPU's memory.
        written = cast(Future[Any], getattr(saved, "upload_completion", saved))
        if comm.is_main_process():
            state = without_tensors({**self.carried, **data})
            written = _then(written, partial(self._complete, target, state, is_last))
        self._pending, self._is_pending_last = written, is_last

    def _make(self, folder: Path) -> None:
        """Makes an empty folder, for all processes to write to."""
        fault: str | None = None
        if comm.is_main_process():
            try:
                if folder.exists():  # a save has failed
                    remove(folder)
                folder.mkdir(parents=True)
            except OSError as error:
                fault = str(error)
        if fault := comm.all_gather(fault)[0]:
            raise OSError(fault)

    def _complete(self, target: Path, state: Mapping[str, object], is_last: bool) -> None:
        """Gives a folder, which all processes have written, its name."""
        aside = target.with_name(_PARTIAL_NAME)
        old = target.with_name(f"{target.name}{_OLD_SUFFIX}")
        with (aside / STATE_NAME).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            target.replace(old)
        aside.replace(target)
        if old.exists():
            remove(old)
        if is_last:
            self._finish(target.stem)
        else:
            self._remove_other_kind(target.stem)


def recover(folder: Path) -> None:
    """Puts right what a killed run has left; call it in one process, before anything is read.

    Removes what is incomplete, and gives a checkpoint that was set aside its name again.

    Args:
        folder: the run's output folder.
    """
    for old in folder.glob(f"*{SHARDED_SUFFIX}{_OLD_SUFFIX}"):
        if old.with_suffix("").exists():
            remove(old)
        else:
            old.replace(old.with_suffix(""))
    if (folder / _PARTIAL_NAME).exists():
        remove(folder / _PARTIAL_NAME)


def _own_group() -> distributed.ProcessGroup | None:
    """A group of all processes; None if there is only one."""
    if comm.get_world_size() == 1:
        return None
    group = distributed.new_group(backend="gloo")
    assert isinstance(group, distributed.ProcessGroup)
    return group


def _own_tensors(data: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """What this process writes: its parts, and in the first process what is not divided.

    PyTorch would take such tensors from any process, but batch statistics are of each its own, and
    those of the first process are evaluated.
    """
    named = named_tensors(data)
    return {n: t for n, t in named if comm.is_main_process() or isinstance(t, DTensor)}


def _then(first: Future[Any], action: Callable[[], None]) -> Future[Any]:
    """Completes when the action is done, which follows `first` in its thread."""
    second: Future[Any] = Future()

    def act(done: Future[Any]) -> None:
        try:
            done.result()
            action()
        except BaseException as error:  # PyTorch's CheckpointException is no Exception
            second.set_exception(error)
        else:
            second.set_result(None)

    first.add_done_callback(act)
    return second
