"""Checkpoint files as plain state dicts, read without executing what is in them."""

import logging
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitadapter.checkpoint.pickle_names import Unread
from vitadapter.checkpoint.torch_files import read_torch_file

__all__ = [
    "StateDict",
    "check_file",
    "read_checkpoint_file",
    "read_state_dict",
    "unwrap_state_dict",
]

_DATA_PARALLEL = re.compile(r"(module\.)*")

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

# Where training codes keep the weights, in the order of preference. The plain weights come before
# a moving average of them ("ema"), which is what the official ViT-Adapter code loads too; an
# average is read where there is nothing else. DINO and iBOT publish the "teacher".
_PLAIN = ("state_dict", "model", "module", "model_state", "teacher")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
# Kinds of NumPy's types: truth values, whole, real and complex numbers.
_NUMERIC = "biufc"
# Weights hardly become smaller when they are compressed.
_MOST_UNPACKING = 4
_SMALL_BYTES = 2**28
# What a file that is no checkpoint, or only part of one, may raise.
_NOT_WEIGHTS = (
    AssertionError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
# Those of them whose message says nothing by itself.
_DAMAGED = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    TypeError,
    UnicodeError,
    struct.error,
)


def _read_safetensors(path: Path) -> object:
    return load_file(path)


def _read_torch(path: Path) -> object:
    # What is not asked for, such as an optimizer's state, is not read.
    return read_torch_file(path, is_mapped=True)


def _read_npz(path: Path) -> object:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        unpacked = sum(info.file_size for info in infos)
        if unpacked > max(_MOST_UNPACKING * path.stat().st_size, _SMALL_BYTES):
            raise ValueError(
                f"it unpacks to {unpacked} bytes, over {_MOST_UNPACKING} times its own"
            )
        arrays: dict[str, Tensor] = {}
        for info in infos:
            name = info.filename.removesuffix(".npy")
            if name in arrays:
                raise ValueError(f"two of its entries are called {name}")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name} is compressed in another way than NumPy does it")
            with archive.open(info) as file:
                arrays[name] = torch.from_numpy(_read_array(file, name, info.file_size))
    return arrays


def _read_array(file: IO[bytes], name: str, size: int) -> np.ndarray:
    """A numeric array whose header asks for no more than the `size` bytes that there are."""
    header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, _, dtype = header[npy.read_magic(file)](file)
    if dtype.kind not in _NUMERIC:
        raise ValueError(f"{name} is an array of {dtype}, not of numbers (it may hide a pickle)")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{name} should have the shape {shape}, but there are {size} bytes")
    file.seek(0)
    array = npy.read_array(file, allow_pickle=False)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_pickle(path: Path) -> object:
    if not zipfile.is_zipfile(path):
        raise ValueError(
            "a .pkl file (Detectron2's model zoo has these) is a program that loading would run; "
            "load it where you trust it and save its tensors as .safetensors"
        )
    return _read_torch(path)


_READERS: Mapping[str, Callable[[Path], object]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pkl": _read_pickle,
}


def _packed_checkpoint(path: Path) -> str | None:
    """The checkpoint inside a zip archive, which several official releases are packed into."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.endswith((".pth", ".pth.tar", ".pt"))]
    return names[0] if names else None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError):
        return f"it needs more memory than there is ({text})"
    if isinstance(error, _DAMAGED):
        return f"it is damaged, or no such file ({type(error).__name__}: {text.split('. ')[0]})"
    return text


def check_file(path: Path) -> None:
    """Refuses weights that are not there.

    Raises:
        ValueError: there is no such file, or it is empty.
    """
    try:
        is_file = path.is_file()
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        raise ValueError(f"the weights {path} cannot be reached: {error.strerror}") from error
    if not is_file:
        fault = "are a folder, not a file" if path.is_dir() else "do not exist"
        raise ValueError(f"the weights {path} {fault}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} cannot be loaded as weights: the file is empty")


def read_checkpoint_file(path: str | Path, *, is_mapped: bool = False) -> dict[str, object]:
    """Reads a training state that ``torch.save`` has written; nothing in it is executed.

    Args:
        path: of any name.
        is_mapped: whether tensors may stay in the file until they are used, which leaves out what
            nobody uses; the file must then not be overwritten.

    Returns:
        As it was saved: numbers, strings, None and tensors (on the CPU) in dicts, lists and
        tuples. NumPy's and other objects are :class:`~vitadapter.checkpoint.pickle_names.Unread`.

    Raises:
        ValueError: the file is absent, empty, cut off, no such file, or asks for code to be run.
    """
    path = Path(path)
    check_file(path)
    try:
        content = read_torch_file(path, is_mapped=is_mapped)
    except _NOT_WEIGHTS as error:
        raise ValueError(f"{path} cannot be loaded: {_reason(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path} cannot be loaded: a checkpoint is a dict with names as keys")
    return content


def read_state_dict(path: str | Path, *, averaged: bool = False) -> StateDict:
    """Reads the weights of a checkpoint file; nothing in it is executed.

    Args:
        path: ``.safetensors``, ``.npz``, or what ``torch.save`` has written (any other suffix).
        averaged: as of :func:`unwrap_state_dict`.

    Returns:
        Tensors on the CPU by name, as :func:`unwrap_state_dict` finds them.

    Raises:
        ValueError: the file is absent, empty, cut off, no checkpoint, or asks for code to be run.
    """
    path = Path(path)
    check_file(path)
    reader = _READERS.get(path.suffix.lower(), _read_torch)
    try:
        if reader is _read_torch and (packed := _packed_checkpoint(path)):
            raise ValueError(f"it is an archive, unpack {packed} from it first")
        return unwrap_state_dict(reader(path), averaged=averaged)
    except _NOT_WEIGHTS as error:
        raise ValueError(f"{path} cannot be loaded as weights: {_reason(error)}") from error


def _dense_tensors(content: Mapping[object, object]) -> StateDict:
    """Tensors by name; what else is beside them is left out."""
    tensors = [(str(name), value) for name, value in content.items() if isinstance(value, Tensor)]
    if not tensors:
        raise ValueError(f"it has no tensors among {sorted(map(str, content))[:5]}")
    for name, value in content.items():
        if isinstance(value, Unread) and value.is_tensor:
            raise ValueError(f"{name} is {value.kind}, dense ones are needed")
    result: StateDict = {}
    for name, tensor in tensors:
        if name in result:
            raise ValueError(f"two of its entries are called {name}")
        result[name] = tensor
    return result


def unwrap_state_dict(content: object, *, averaged: bool = False) -> StateDict:
    """Finds the state dict in what a training code has saved.

    Follows ``state_dict``, ``model``, ``module``, ``model_state``, ``teacher`` and, where there is
    none of them, the averages ``state_dict_ema``, ``model_ema``, ``ema_state_dict`` and ``ema``;
    removes the ``module.`` of data parallel and the ``_orig_mod.`` of compiled models, and the
    ``ema_*`` copies that mmcv keeps beside the weights (the weights themselves are used, as
    officially).

    Args:
        content: what was read from a file.
        averaged: whether ``state_dict_ema`` and ``model_ema`` come before all others.

    Returns:
        The tensors by name.

    Raises:
        ValueError: there are no tensors, or names that become equal.
    """
    wrappers = (*_AVERAGED, *_PLAIN) if averaged else (*_PLAIN, *_AVERAGED)
    outer: list[object] = []
    while isinstance(content, Mapping):
        if any(content is mapping for mapping in outer):
            raise ValueError("it contains itself")
        outer.append(content)
        wrapper = next((k for k in wrappers if isinstance(content.get(k), Mapping)), None)
        if wrapper is None:
            break
        if wrapper in _AVERAGED:
            logger.info("Taking the averaged weights (%s)", wrapper)
        content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f"a checkpoint is a dict of tensors, got {type(content).__name__}")
    tensors = _dense_tensors(content)
    copies = {f"ema_{name.replace('.', '_')}" for name in tensors}
    result: StateDict = {}
    for name, tensor in tensors.items():
        if name in copies:
            continue
        short = name.replace("_orig_mod.", "")
        short = short[_DATA_PARALLEL.match(short).end() :]
        if short in result:
            raise ValueError(f"two of its entries are called {short}")
        result[short] = tensor
    return result
