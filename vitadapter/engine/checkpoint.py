"""Checkpoints that a kill cannot corrupt, and the weights that a run starts from."""

import os
import pickle
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

__all__ = ["AtomicCheckpointer", "check_weights_exist", "load_init_checkpoint"]

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
    UnicodeError,
    pickle.UnpicklingError,
)


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, writing aside and renaming: each file is whole or absent.

    Attributes:
        saved_iteration: the iteration of the last save, None before it.
    """

    saved_iteration: int | None = None

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

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Names the file that a resumed run loads."""
        partial = Path(self.save_dir, f"{_PARTIAL_NAME}.tag")
        partial.write_text(last_filename_basename)
        partial.replace(Path(self.save_dir, "last_checkpoint"))


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


def load_init_checkpoint(checkpointer: DetectionCheckpointer, path: str) -> None:
    """Loads the weights that training or evaluation starts from; nothing for an empty path.

    Args:
        checkpointer: only its model is loaded, not the state of a trainer.
        path: file or URL in a form that Detectron2 reads.

    Raises:
        ValueError: the file does not exist or is no checkpoint.
    """
    if path:
        check_weights_exist(path)
    try:
        checkpointer.load(path, checkpointables=[])
    except _NOT_WEIGHTS as error:
        raise ValueError(
            f"train.init_checkpoint={path} cannot be loaded as weights: {error}"
        ) from error
