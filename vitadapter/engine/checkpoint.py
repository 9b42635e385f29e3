"""Checkpoints that a kill cannot corrupt, and loading the weights that a run starts from."""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, ClassVar

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils import comm
from torch import nn
from torch.distributed.tensor import DTensor

from vitadapter.checkpoint.loading import check_plan, plan_load
from vitadapter.checkpoint.reading import (
    StateDict,
    check_file,
    is_of_run,
    read_checkpoint_file,
    read_state_dict,
)
from vitadapter.checkpoint.sharded import (
    SHARDED_SUFFIX,
    divide_like,
    local_part,
    named_tensors,
)
from vitadapter.checkpoint.sources import check_source, fetch, is_remote
from vitadapter.engine.settings import expand_home

__all__ = [
    "BEST_NAME",
    "FINAL_NAME",
    "LAST_NAME",
    "AtomicCheckpointer",
    "check_weights_exist",
    "evaluation_iteration",
    "find_not_finite",
    "iteration_of",
    "load_init_checkpoint",
    "remove",
    "saved_files",
]

logger = logging.getLogger(__name__)

BEST_NAME = "model_best"
"""File name, without its suffix, of the weights with the best evaluation."""

FINAL_NAME = "model_final"
"""File name, without its suffix, of the checkpoint of the last iteration."""

LAST_NAME = "last_checkpoint"
"""Detectron2's name for the file that names the checkpoint to resume from."""

# By file name: how the two kinds of checkpointers end it.
_SUFFIXES = (".pth", SHARDED_SUFFIX)
_PERIODIC = re.compile(r"model_(\d{7,})")

# Always the same name, so that the next save overwrites what a killed one left behind.
_PARTIAL_NAME = "checkpoint.partial"
_REMOVED_NAME = "checkpoint.removed"
_REPORT_NAME = "init_checkpoint_report.txt"
# Detectron2's query for matching weights by similar names; without it, the file's family is found.
_HEURISTICS = ("matching_heuristics=True", "matching_heuristics=False")


def iteration_of(path: Path) -> int | None:
    """The iteration in the name of a checkpoint; None if there is none."""
    match = _PERIODIC.fullmatch(path.stem)
    return int(match[1]) if match and path.suffix in _SUFFIXES else None


def saved_files(folder: Path, name: str = "*") -> list[Path]:
    """The checkpoints of a run, files and folders of parts.

    Args:
        folder: the run's output folder.
        name: of the checkpoint without its suffix, or a pattern.
    """
    return [path for suffix in _SUFFIXES for path in folder.glob(f"{name}{suffix}")]


def evaluation_iteration(weights: str) -> int:
    """The iteration at which training writes the evaluation of weights to `metrics.json`.

    Args:
        weights: as of `load_init_checkpoint`.

    Returns:
        0 if the file does not say.
    """
    source = weights.partition("?")[0]
    file = fetch(expand_home(source))
    if not is_of_run(file):
        return 0
    try:
        iteration = read_checkpoint_file(file, is_mapped=True).get("iteration")
    except ValueError:  # of another form, such as an archive of arrays
        return 0
    if not isinstance(iteration, int) or iteration < 0:
        return 0
    # Detectron2 counts on after the last iteration, before it evaluates.
    return iteration + (Path(file).stem == FINAL_NAME)


def find_not_finite(data: object) -> str | None:
    """The name of the first tensor with an infinite or NaN value; None if there is none.

    Args:
        data: nested dicts, lists and tuples, of tensors and anything else. If tensors are divided
            between processes, all processes have to ask.
    """
    is_divided, wrong = False, None
    for name, tensor in named_tensors(data):
        is_divided |= isinstance(tensor, DTensor)
        if wrong is None and not local_part(tensor).isfinite().all():
            wrong = name
    return next(filter(None, comm.all_gather(wrong)), None) if is_divided else wrong


def remove(path: Path) -> None:
    """Removes a checkpoint so that a kill leaves it whole or gone."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    aside = path.with_name(_REMOVED_NAME)
    if aside.exists():  # of a kill
        shutil.rmtree(aside)
    shutil.rmtree(path.replace(aside))


@contextlib.contextmanager
def _replaced(target: Path) -> Iterator[BinaryIO]:
    """A file that replaces `target` once everything has been written to it.

    Raises:
        OSError: it cannot be written; a part of it does not keep the disk full.
    """
    if not target.parent.is_dir():
        logger.warning("%s has vanished, with what it held: it is made again", target.parent)
        target.parent.mkdir(parents=True)
    partial = target.with_name(_PARTIAL_NAME)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        partial.unlink(missing_ok=True)
        # PyTorch raises another error when it closes what it could not write.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError) and cause.errno is not None:
            raise OSError(cause.errno, cause.strerror, str(target)) from error
        raise
    partial.replace(target)


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, except that

    - it writes to a temporary file that it then renames, so that no file is ever incomplete;
    - it refuses to write infinite and NaN values;
    - it removes old checkpoints, including those of earlier starts of the run;
    - it reads files without executing anything in them.

    Its `save` and `save_weights` may be called in all processes; the first one writes.

    Attributes:
        suffix: how the names of what it writes end.
        max_to_keep: how many checkpoints named after an iteration are kept; None for all.
        saved_iteration: the iteration of the last save; None before the first.
        carried: plain entries that every file has besides, such as the config.
    """

    suffix: ClassVar[str] = ".pth"
    max_to_keep: int | None = None
    saved_iteration: int | None = None
    carried: Mapping[str, object] = MappingProxyType({})

    def save(self, name: str, **extra: object) -> None:
        """Saves the model and all checkpointables as `name.pth`, and tags this as the last file.

        Args:
            name: file name without its suffix.
            extra: further data to save, such as the iteration.

        Raises:
            FloatingPointError: a weight, an average or the optimizer's state is infinite or NaN.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        self._write(name, self._state(extra))
        self._note_saved(extra)
        self._finish(name)

    def _state(self, extra: Mapping[str, object]) -> dict[str, object]:
        """All that is saved of training."""
        states = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        return {"model": self.model.state_dict(), **states, **extra}

    def _note_saved(self, extra: Mapping[str, object]) -> None:
        iteration = extra.get("iteration")
        self.saved_iteration = iteration if isinstance(iteration, int) else None

    def _finish(self, name: str) -> None:
        """Makes a checkpoint that is complete the last one."""
        self.tag_last_checkpoint(f"{name}{self.suffix}")
        self._remove_other_kind(name)
        self._remove_old(f"{name}{self.suffix}")

    def _remove_other_kind(self, name: str) -> None:
        """Removes what a run with another `train.parallel` has saved under the same name."""
        for path in saved_files(Path(self.save_dir), name):
            if path.suffix != self.suffix:
                remove(path)

    def can_save(self) -> bool:
        """Whether all processes that have to take part in a save are there, even after an error."""
        return True

    def wait(self) -> None:
        """Waits until what was saved is on the disk.

        Raises:
            OSError: it could not be written.
        """

    def save_weights(self, name: str, model: nn.Module, **extra: object) -> None:
        """Saves only weights, as `name.pth`, which a resumed run does not load.

        Args:
            name: file name without its suffix.
            model: the model whose weights are saved.
            extra: further data to save.

        Raises:
            FloatingPointError: a weight is infinite or NaN.
        """
        if self.save_dir and self.save_to_disk:
            self._write(name, {"model": model.state_dict(), **extra})
            self._remove_other_kind(name)

    def _write(self, name: str, data: Mapping[str, object]) -> None:
        target = Path(self.save_dir, f"{name}.pth")
        if wrong := find_not_finite(data):
            raise FloatingPointError(f"{wrong} is infinite or NaN: {target} is not written")
        self.logger.info("Saving checkpoint to %s", target)
        with _replaced(target) as file:
            torch.save({**self.carried, **data}, file)

    def _remove_old(self, last: str) -> None:
        """Keeps the files written last, since a run may be resumed from an older one."""
        if self.max_to_keep is None:
            return
        files = [p for p in Path(self.save_dir).iterdir() if iteration_of(p) is not None]
        others = sorted(
            (path for path in files if path.name != last),
            key=lambda path: (path.stat().st_mtime_ns, path.name),
            reverse=True,
        )
        for path in others[self.max_to_keep - (len(others) < len(files)) :]:
            remove(path)

    def load_model(self, state_dict: Mapping[str, torch.Tensor], path: str) -> None:
        """Loads the weights of a checkpoint to resume from.

        Args:
            state_dict: all weights of the model.
            path: where they come from, for the message.

        Raises:
            ValueError: the weights are those of another model; names the first three missing ones.
        """
        divided = divide_like(state_dict, self.model.state_dict())
        incompatible = self._load_model({"model": divided})
        self._log_incompatible_keys(incompatible)
        state = self.model.state_dict(keep_vars=True)
        # A shared parameter needs to be found under one of its names only.
        found = {id(v) for name, v in state.items() if name not in incompatible.missing_keys}
        shapes = {
            name: f"{name} {tuple(in_model)} from {tuple(in_file)}"
            for name, in_file, in_model in incompatible.incorrect_shapes
        }
        missing = [
            shapes.get(name, name)
            for name in incompatible.missing_keys
            # It only counts batches, and files written by PyTorch before 0.4.1 lack it.
            if id(state[name]) not in found and not name.endswith("num_batches_tracked")
        ]
        if missing:
            raise ValueError(
                f"{path} is of another model: {len(missing)} of the {len(state)} weights are "
                f"missing or have the wrong shape: {', '.join(missing[:3])}"
            )

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Records the name of the file that a resumed run loads."""
        with _replaced(Path(self.save_dir, LAST_NAME)) as file:
            file.write(last_filename_basename.encode())

    def _load_file(self, filename: str) -> dict[str, object]:
        return read_checkpoint_file(filename)


def check_weights_exist(path: str) -> None:
    """Refuses a file of weights that does not exist, before anything is built.

    Args:
        path: file or URL, with or without Detectron2's "?matching_heuristics=True".

    Raises:
        ValueError: the file does not exist, or is empty, or the model zoo has no such weights.
    """
    file_name = path.partition("?")[0]
    if is_remote(file_name):
        check_source(file_name)
        return
    try:
        check_file(Path(file_name))
    except ValueError as error:
        raise ValueError(
            f"{error}: set train.init_checkpoint=... "
            "(train.init_checkpoint='' starts from random weights)"
        ) from error


def _read(model: nn.Module, path: str, averaged: bool) -> StateDict:
    """Reads the checkpoint of a path that may end in Detectron2's query."""
    file_name, _, query = path.partition("?")
    if query not in ("", *_HEURISTICS):
        raise ValueError(f"a path may end in ?{_HEURISTICS[0]} only, got {path}")
    file = fetch(file_name)
    try:
        state_dict = read_state_dict(file, averaged=averaged)
    except ValueError as error:
        if not is_remote(file_name):
            raise
        raise ValueError(f"{error}. If it was damaged on its way, delete it") from error
    if query != _HEURISTICS[0]:
        return state_dict
    return align_and_update_state_dicts(model.state_dict(), state_dict, c2_conversion=False)


def load_init_checkpoint(
    checkpointer: AtomicCheckpointer,
    path: str,
    *,
    complete: bool = False,
    allow_partial: bool = False,
    averaged: bool = False,
) -> None:
    """Loads the weights that training or evaluation starts from; does nothing for an empty path.

    The file may be of any family that `vitadapter.checkpoint` knows. It is converted and fitted to
    the model first, and the model is changed only if every check passes. A summary is logged, and
    what happened to each entry is written to `init_checkpoint_report.txt` in the output folder.

    Args:
        checkpointer: the checkpointer of the model; its other checkpointables are not loaded.
        path: a file, a URL, `zoo://experiment`, `hf://org/repo/file` or `timm://name`.
        complete: whether the file must have every weight of the model, in its shape. Otherwise,
            missing ones, such as those of a new head, keep their initial values.
        allow_partial: whether the file may have only a part of the plain ViT.
        averaged: whether to take the moving average of the weights (EMA) if the file has one.

    Raises:
        ValueError: the file does not exist, is not a checkpoint, or belongs to another model.
    """
    if not path:
        return
    path = expand_home(path)
    check_weights_exist(path)
    model = checkpointer.model
    state_dict = _read(model, path, averaged)
    plan = plan_load(model, state_dict, path, resize=not complete)
    check_plan(plan, model, complete=complete, allow_partial=allow_partial)
    plan.apply(model)
    level = logging.WARNING if plan.is_doubtful else logging.INFO
    logger.log(level, "%s", plan.report.summary())
    if checkpointer.save_dir and checkpointer.save_to_disk:
        plan.report.write(Path(checkpointer.save_dir, _REPORT_NAME))
