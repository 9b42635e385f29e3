"""Converted checkpoints kept on disk, for families whose conversion takes long.

They are in ``$VITADAPTER_CACHE``, else in ``~/.cache/vitadapter``, and may be deleted at any time.
Downloads are not here: the Hugging Face hub and Detectron2 keep their own.
"""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vitadapter import __version__
from vitadapter.checkpoint.families import FAMILIES, find_family
from vitadapter.checkpoint.family import Conversion, Family
from vitadapter.checkpoint.reading import StateDict, read_state_dict

__all__ = ["cache_folder", "read_checkpoint"]

logger = logging.getLogger(__name__)

_FOLDER_VARIABLE = "VITADAPTER_CACHE"


def cache_folder() -> Path:
    """Where converted checkpoints are kept."""
    folder = os.environ.get(_FOLDER_VARIABLE)
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "vitadapter"


def _entry(path: Path) -> Path:
    """The cached file of a checkpoint: another one for other content, time or version.

    Whoever copies a file may keep the time of its content, but not that of its inode.
    """
    status = path.stat()
    times = (status.st_mtime_ns, status.st_ctime_ns)
    key = (str(path.resolve()), status.st_ino, status.st_size, *times, __version__)
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return cache_folder() / f"{digest[:32]}.safetensors"


def _save(entry: Path, family: Family, conversion: Conversion) -> None:
    """Writes aside and renames, so that concurrent processes see a whole file or none."""
    metadata = {
        "family": family.name,
        "renamed": json.dumps(dict(conversion.renamed)),
        "dropped": json.dumps(dict(conversion.dropped)),
        "implied": json.dumps(dict(conversion.implied)),
    }
    tensors = {name: tensor.contiguous() for name, tensor in conversion.tensors.items()}
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent) as folder:
            partial = Path(folder, entry.name)
            save_file(tensors, partial, metadata)
            partial.replace(entry)
    except (OSError, SafetensorError) as error:
        logger.warning("The converted checkpoint cannot be kept in %s: %s", entry.parent, error)


def _load(entry: Path) -> Family | None:
    """The family of a cached file, whose only converter returns what was stored."""
    try:
        with safe_open(entry, "pt") as file:
            metadata = file.metadata()
            family = find_family(metadata["family"])
            conversion = Conversion(
                {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                renamed=json.loads(metadata["renamed"]),
                dropped=json.loads(metadata["dropped"]),
                implied=json.loads(metadata["implied"]),
            )
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        logger.warning("%s is not usable and is made again: %s", entry, error)
        return None
    logger.info("Using the converted checkpoint %s", entry)
    return Family(
        family.name, family.description, family.recognises, (lambda state_dict: conversion,)
    )


def read_checkpoint(path: Path, *, averaged: bool = False) -> tuple[StateDict, Family | None]:
    """Reads a checkpoint, or what an earlier run has made of it where that took long.

    Args:
        path: of the checkpoint.
        averaged: whether to take a moving average of the weights where the file has one; such
            files are not kept.

    Returns:
        Its state dict, and its family; None where the family is still to be recognised. The state
        dict is empty where the family brings the conversion from the cache.

    Raises:
        ValueError: the file is no checkpoint, or not a whole one of its family.
    """
    if averaged:
        return read_state_dict(path, averaged=True), None
    if path.is_file() and (entry := _entry(path)).is_file():
        family = _load(entry)
        if family is not None:
            return {}, family
    state_dict = read_state_dict(path)
    family = next((f for f in FAMILIES if f.is_costly and f.recognises(state_dict)), None)
    if family is not None:
        (convert,) = family.converters
        conversion = convert(state_dict)
        _save(_entry(path), family, conversion)
    return state_dict, family
