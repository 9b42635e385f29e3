"""Checkpoints that a kill cannot corrupt, and the weights that a run starts from."""

import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import _IncompatibleKeys

__all__ = [
    "AtomicCheckpointer",
    "check_loaded",
    "check_weights_exist",
    "expand_home",
    "load_init_checkpoint",
]

# Fixed, so that what a killed save leaves behind is overwritten by the next one.
_PARTIAL_NAME = "checkpoint.partial"
# What unpickling an arbitrary file may raise.
_NOT_WEIGHTS = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, writing aside and renaming: each file is whole or absent.

    Attributes:
        saved_iteration: the iteration of the last save, None before it.
        missing: names of the parameters and buffers that the last load did not find, with their
            shapes where these do not fit.
        unexpected: names in the file that the model does not have.
    """

    saved_iteration: int | None = None
    missing: Mapping[str, str] = {}
    unexpected: Sequence[str] = ()

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
        target = Path(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", target)
        partial = target.with_name(_PARTIAL_NAME)
        with partial.open("wb") as file:
            torch.save(data, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        self.tag_last_checkpoint(target.name)
        iteration = extra.get("iteration")
        self.saved_iteration = iteration if isinstance(iteration, int) else None

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
        self.unexpected = incompatible.unexpected_keys
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
    if "://" not in file_name and not PathManager.isfile(file_name):
        raise ValueError(
            f"the weights {file_name} do not exist: set train.init_checkpoint=... "
            "(train.init_checkpoint='' starts from random weights)"
        )


def _first(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:3])


def check_loaded(checkpointer: AtomicCheckpointer, path: str, *, complete: bool) -> None:
    """Refuses weights that belong to another model.

    Args:
        checkpointer: has just loaded `path`.
        path: named in the message.
        complete: whether every weight of the model must have been in the file, in its shape;
            else one is enough.

    Raises:
        ValueError: names the first three weights that are missing.
    """
    missing = checkpointer.missing
    parameters = [name for name, _ in checkpointer.model.named_parameters()]
    if parameters and all(name in missing for name in parameters):
        raise ValueError(
            f"{path} has none of the {len(parameters)} parameters of the model: it has "
            f"{_first(checkpointer.unexpected) or 'no other'}, ..., the model has "
            f"{_first(missing.values())}, ...: convert its names first (vitadapter.checkpoint)"
        )
    if complete and missing:
        raise ValueError(
            f"{path} is of another model: {len(missing)} of the "
            f"{len(checkpointer.model.state_dict())} weights are missing or of another shape: "
            f"{_first(missing.values())}"
        )


def load_init_checkpoint(
    checkpointer: AtomicCheckpointer, path: str, *, complete: bool = False
) -> None:
    """Loads the weights that training or evaluation starts from; nothing for an empty path.

    Args:
        checkpointer: only its model is loaded, not the state of a trainer.
        path: file or URL in a form that Detectron2 reads.
        complete: whether every weight of the model must be in the file; else those that are not,
            such as a new head's, are named in a warning.

    Raises:
        ValueError: the file does not exist, is no checkpoint, or is one of another model.
    """
    path = expand_home(path)
    if path:
        check_weights_exist(path)
    try:
        checkpointer.load(path, checkpointables=[])
    except _NOT_WEIGHTS as error:
        raise ValueError(
            f"train.init_checkpoint={path} cannot be loaded as weights: {error}"
        ) from error
    if path:
        check_loaded(checkpointer, path, complete=complete)
