"""Checkpoints that a kill cannot corrupt, and the weights that a run starts from."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import nn

from vitadapter.checkpoint.loading import check_plan, plan_load
from vitadapter.checkpoint.reading import StateDict, read_state_dict
from vitadapter.checkpoint.sources import fetch, is_remote

__all__ = [
    "BEST_NAME",
    "AtomicCheckpointer",
    "check_loaded",
    "check_weights_exist",
    "expand_home",
    "load_init_checkpoint",
]

logger = logging.getLogger(__name__)

BEST_NAME = "model_best"
"""File name, without its ending, of the weights with the best evaluation."""

# Fixed, so that what a killed save leaves behind is overwritten by the next one.
_PARTIAL_NAME = "checkpoint.partial"
_REPORT_NAME = "init_checkpoint_report.txt"
# Detectron2's query that has names guessed; by default they are recognised.
_HEURISTICS = ("matching_heuristics=True", "matching_heuristics=False")


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, writing aside and renaming: each file is whole or absent.

    Attributes:
        saved_iteration: the iteration of the last save, None before it.
        missing: names of the parameters and buffers that the last load did not find, with their
            shapes where these do not fit.
    """

    saved_iteration: int | None = None
    missing: Mapping[str, str] = {}

    def save(self, name: str, **extra: object) -> None:
        """Saves the model and all checkpointables as `name.pth` and tags it as the last one.

        Args:
            name: file name without its ending.
            extra: further data to save, as Detectron2's periodic checkpointer passes it.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(extra)
        self._write(name, data)
        self.tag_last_checkpoint(f"{name}.pth")
        iteration = extra.get("iteration")
        self.saved_iteration = iteration if isinstance(iteration, int) else None

    def save_weights(self, name: str, model: nn.Module, **extra: object) -> None:
        """Saves weights only, as `name.pth`, which a resumed run does not load.

        Args:
            name: file name without its ending.
            model: whose weights are saved.
            extra: further data to save.
        """
        if self.save_dir and self.save_to_disk:
            self._write(name, {"model": model.state_dict(), **extra})

    def _write(self, name: str, data: Mapping[str, object]) -> None:
        target = Path(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", target)
        partial = target.with_name(_PARTIAL_NAME)
        with partial.open("wb") as file:
            torch.save(data, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)

    def _load_model(self, checkpoint: dict[str, object]) -> _IncompatibleKeys:
        incompatible = super()._load_model(checkpoint)
        state = self.model.state_dict(keep_vars=True)
        # A shared parameter is there under each of its names.
        found = {id(v) for name, v in state.items() if name not in incompatible.missing_keys}
        shapes = {
            name: f"{name} {tuple(in_model)} from {tuple(in_file)}"
            for name, in_file, in_model in incompatible.incorrect_shapes
        }
        self.missing = {
            name: shapes.get(name, name)
            for name in incompatible.missing_keys
            # Only counts, and PyTorch's files of before version 0.4.1 lack it.
            if id(state[name]) not in found and not name.endswith("num_batches_tracked")
        }
        return incompatible

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Names the file that a resumed run loads."""
        partial = Path(self.save_dir, f"{_PARTIAL_NAME}.tag")
        partial.write_text(last_filename_basename)
        partial.replace(Path(self.save_dir, "last_checkpoint"))


def expand_home(path: str) -> str:
    """`path` with a leading `~` resolved; whatever else it is stays as it stands."""
    return str(Path(path).expanduser()) if path == "~" or path.startswith("~/") else path


def check_weights_exist(path: str) -> None:
    """Refuses weights that are not there, before anything is built.

    Args:
        path: file or URL, with or without Detectron2's "?matching_heuristics=True".

    Raises:
        ValueError: the file does not exist.
    """
    file_name = path.partition("?")[0]
    # Path's raises for a name that is too long.
    if not is_remote(file_name) and not os.path.isfile(file_name):  # noqa: PTH113
        raise ValueError(
            f"the weights {file_name} do not exist: set train.init_checkpoint=... "
            "(train.init_checkpoint='' starts from random weights)"
        )


def check_loaded(checkpointer: AtomicCheckpointer, path: str) -> None:
    """Refuses a checkpoint to resume from that belongs to another model.

    Args:
        checkpointer: has just loaded `path`.
        path: named in the message.

    Raises:
        ValueError: names the first three weights that are missing.
    """
    missing = list(checkpointer.missing.values())
    if missing:
        raise ValueError(
            f"{path} is of another model: {len(missing)} of the "
            f"{len(checkpointer.model.state_dict())} weights are missing or of another shape: "
            f"{', '.join(missing[:3])}"
        )


def _read(model: nn.Module, path: str, averaged: bool) -> StateDict:
    """The checkpoint of a path that may end in Detectron2's query."""
    file_name, _, query = path.partition("?")
    if query not in ("", *_HEURISTICS):
        raise ValueError(f"a path may end in ?{_HEURISTICS[0]} only, got {path}")
    state_dict = read_state_dict(fetch(file_name), averaged=averaged)
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
    """Loads the weights that training or evaluation starts from; nothing for an empty path.

    The file may be of any family that `vitadapter.checkpoint` knows: it is converted and fitted to
    the model first, and the model is touched only if everything is as it should be. What became
    of each entry is logged, and written to `init_checkpoint_report.txt` in the output folder.

    Args:
        checkpointer: only its model is loaded, not the state of a trainer.
        path: a file, a URL, `hf://org/repo/file` or `timm://name`.
        complete: whether every weight of the model must be in the file, in its shape; else those
            that are not, such as a new head's, stay as initialised.
        allow_partial: whether the plain ViT may be loaded in part.
        averaged: whether to take the moving average of the weights (EMA) where the file has one.

    Raises:
        ValueError: the file does not exist, is no checkpoint, or is one of another model.
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
