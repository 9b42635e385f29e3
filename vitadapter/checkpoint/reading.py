"""Checkpoint files as plain state dicts, read without executing what is in them.

Reads `.safetensors`, `.npz`, the files of `torch.save` (today's zip archives, and the format
from before PyTorch 1.6), pickles of NumPy's arrays, such as those of Detectron2's model zoo, and
the folders that runs with divided weights save (`vitadapter.checkpoint.sharded`).
"""

import io
import logging
import math
import mmap
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitadapter.checkpoint.archives import CHECKPOINT_SUFFIXES, check_unpacked
from vitadapter.checkpoint.pickled_objects import Storage, Unread, storage_dtype
from vitadapter.checkpoint.pickles import PickleReader
from vitadapter.checkpoint.sharded import STATE_NAME, fill_tensors, is_sharded, read_tensors

__all__ = [
    "StateDict",
    "check_file",
    "is_of_run",
    "read_checkpoint_file",
    "read_state_dict",
    "read_torch_file",
    "unwrap_state_dict",
]

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

# Where training codes keep the weights, in the order of preference. The plain weights come before
# a moving average of them ("ema"), which is what the official ViT-Adapter code loads too; an
# average is read where there is nothing else. DINO and iBOT publish the "teacher".
_PLAIN = ("state_dict", "model", "module", "model_state", "teacher")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_DATA_PARALLEL = re.compile(r"^(module\.)+")
# Kinds of NumPy data types: Booleans, signed and unsigned integers, real and complex numbers.
_NUMERIC = "biufc"
_LONGEST_NAME = 1000
# The file format of torch.save.
_PICKLE = "data.pkl"
_MOST_PICKLE_BYTES = 2**26
_ZIP_START = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
# What may be raised by a file that is not a checkpoint, or only part of one: first the errors
# whose messages explain nothing by themselves, then all of them.
_DAMAGED = (
    *(AssertionError, AttributeError, EOFError, LookupError, OSError, TypeError, UnicodeError),
    struct.error,
)
_NOT_WEIGHTS = (
    *(*_DAMAGED, MemoryError, RuntimeError, SafetensorError, SyntaxError, ValueError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def _read_npz(path: Path) -> StateDict:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        check_unpacked(sum(info.file_size for info in infos), path.stat().st_size)
        arrays: dict[str, Tensor] = {}
        for info in infos:
            name = info.filename.removesuffix(".npy")
            if name in arrays:
                raise ValueError(f"two of its entries are called {name}")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name} is compressed in a way that NumPy does not use")
            with archive.open(info) as file:
                arrays[name] = torch.from_numpy(_read_array(file, name, info.file_size))
    return arrays


def _read_array(file: IO[bytes], name: str, size: int) -> np.ndarray:
    """Reads a numeric array whose header asks for no more than the `size` bytes in the file."""
    header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, _, dtype = header[npy.read_magic(file)](file)
    if dtype.kind not in _NUMERIC:
        raise ValueError(f"{name} is an array of {dtype}, not of numbers (it may hide a pickle)")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{name} should have the shape {shape}, but there are {size} bytes")
    file.seek(0)
    array = npy.read_array(file, allow_pickle=False)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _part(memory: mmap.mmap, offset: int, size: int) -> torch.Tensor:
    """Bytes of the file as uint8."""
    if offset + size > len(memory):
        raise ValueError(f"it is cut off: {offset + size} bytes are needed, it has {len(memory)}")
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=offset)


def _parse_storage_id(persistent_id: object, length: int) -> tuple[torch.dtype, str | int, int]:
    """The type of its values, its key, and the number of its values."""
    if not isinstance(persistent_id, tuple) or len(persistent_id) != length:
        raise ValueError("it refers to something that is no storage of a tensor")
    kind, storage_type, key, _, count, *view = persistent_id
    is_valid = kind == "storage" and isinstance(key, str | int) and all(v is None for v in view)
    if not is_valid or type(count) is not int or count < 0:
        raise ValueError("it refers to something that is no storage of a tensor")
    return storage_dtype(storage_type), key, count


class _ZipFile:
    """A folder with `data.pkl` and `data/KEY` for each storage, not compressed."""

    def __init__(self, path: Path, memory: mmap.mmap, is_mapped: bool) -> None:
        self._path, self._memory, self._is_mapped = path, memory, is_mapped
        self._records: dict[str, zipfile.ZipInfo] = {}
        self._storages: dict[str | int, Storage] = {}
        self._bytes_left = len(memory)

    def read(self) -> object:
        with zipfile.ZipFile(self._path) as archive:
            pickle = self._list_records(archive)
            with archive.open(pickle) as file:
                content = file.read(_MOST_PICKLE_BYTES + 1)
        if len(content) > _MOST_PICKLE_BYTES:
            raise ValueError(f"its {_PICKLE} has more than {_MOST_PICKLE_BYTES} bytes")
        return PickleReader(self._storage, len(self._memory)).read(io.BytesIO(content))

    def _list_records(self, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
        infos = archive.infolist()
        self._records = {info.filename: info for info in infos}
        if len(self._records) < len(infos):
            raise ValueError("two files in the archive have the same name")
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise ValueError("torch.save does not compress, but the archive is compressed")
        pickles = [name for name in self._records if name.count("/") == 1 and _is_pickle(name)]
        if len(pickles) != 1:
            raise ValueError(f"torch.save writes one {_PICKLE}, the archive has {len(pickles)}")
        self._folder = pickles[0].removesuffix(_PICKLE)
        if f"{self._folder}constants.pkl" in self._records:
            raise ValueError("it is a program (TorchScript), not weights")
        order = self._records.get(f"{self._folder}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise ValueError("its numbers are not in little-endian order")
        return self._records[pickles[0]]

    def _storage(self, persistent_id: object) -> Storage:
        dtype, key, count = _parse_storage_id(persistent_id, 5)
        if key not in self._storages:
            data = self._record(f"{self._folder}data/{key}")
            self._storages[key] = Storage(dtype, data.untyped_storage())
        storage = self._storages[key]
        if count * dtype.itemsize > storage.data.nbytes():
            raise ValueError(
                f"the storage {key} has {storage.data.nbytes()} bytes, not {count} {dtype}"
            )
        return Storage(dtype, storage.data)

    def _record(self, name: str) -> torch.Tensor:
        info = self._records.get(name)
        if info is None:
            raise ValueError(f"the archive has no {name}")
        self._bytes_left -= info.file_size
        if self._bytes_left < 0:  # files of an archive may overlap
            raise ValueError("its tensors are larger than the file")
        end = info.header_offset + _LOCAL_HEADER.size
        header = self._memory[info.header_offset : end]
        if len(header) < _LOCAL_HEADER.size:
            raise ValueError(f"{name} is not where the archive says")
        signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        if signature != _ZIP_START:
            raise ValueError(f"{name} is not where the archive says")
        data = _part(self._memory, end + name_bytes + extra_bytes, info.file_size)
        return data if self._is_mapped else data.clone()


def _is_pickle(name: str) -> bool:
    return name.endswith(f"/{_PICKLE}")


class _PickleFile:
    """What is no archive: one pickle of NumPy's arrays, as those of Detectron2's model zoo; or the
    format of PyTorch before version 1.6, which is pickles one after the other (a number to know it
    by, version, system, content, keys of storages), then the storages: the number of their values,
    and these."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._storages: dict[str | int, Storage] = {}
        self._bytes_left = len(memory)

    def read(self) -> object:
        reader = PickleReader(self._storage, len(self._memory))
        first = reader.read(self._memory)
        if isinstance(first, dict) and not self._storages:
            return first
        if type(first) is not int or first != _MAGIC_NUMBER:
            raise ValueError("it is neither a pickled dict of arrays nor a file of torch.save")
        version = reader.read(self._memory)
        if type(version) is not int or version != _PROTOCOL_VERSION:
            raise ValueError("it is of another version of torch.save")
        system = reader.read(self._memory)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("its numbers are not in little-endian order")
        content = reader.read(self._memory)
        keys = reader.read(self._memory)
        if not isinstance(keys, list) or not all(isinstance(key, str | int) for key in keys):
            raise ValueError("its list of storages is damaged")
        if set(keys) != self._storages.keys():
            raise ValueError("it lists storages other than those its tensors use")
        for key in keys:
            self._fill(self._storages.pop(key))
        return content

    def _storage(self, persistent_id: object) -> Storage:
        """A storage of the right size, whose values come later in the file."""
        dtype, key, count = _parse_storage_id(persistent_id, 6)
        if key not in self._storages:
            self._bytes_left -= count * dtype.itemsize
            if self._bytes_left < 0:
                raise ValueError("its tensors are larger than the file")
            data = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
            self._storages[key] = Storage(dtype, data.untyped_storage())
        return Storage(dtype, self._storages[key].data)

    def _fill(self, storage: Storage) -> None:
        (count,) = struct.unpack("<q", self._memory.read(8))
        size = storage.data.nbytes()
        if count * storage.dtype.itemsize != size:
            raise ValueError(f"a storage has {count} values, its tensors say {size} bytes")
        part = _part(self._memory, self._memory.tell(), size)
        torch.empty(0, dtype=torch.uint8).set_(storage.data, 0, (size,), (1,)).copy_(part)
        self._memory.seek(size, io.SEEK_CUR)


def read_torch_file(path: Path, *, is_mapped: bool) -> object:
    """Like `read_checkpoint_file`, but takes any content and lets all errors through."""
    with path.open("rb") as file:
        # Private: a write into a tensor does not reach the file.
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if zipfile.is_zipfile(path):
        return _ZipFile(path, memory, is_mapped).read()
    if memory[:4] == _ZIP_START:
        raise ValueError("it is cut off: the end of the archive is missing")
    return _PickleFile(memory).read()


def _read_any(path: Path) -> object:
    if is_sharded(path):
        state = read_checkpoint_file(path / STATE_NAME)
        # Not the state of training.
        wanted = tuple(f"{key}." for key in (*_PLAIN, *_AVERAGED))
        return fill_tensors(state, read_tensors(path, lambda name: name.startswith(wanted)))
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return load_file(path)
    if suffix == ".npz":
        return _read_npz(path)
    if suffix != ".pkl" and zipfile.is_zipfile(path):
        # Several official releases are packed.
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith(CHECKPOINT_SUFFIXES)]
        if names:
            raise ValueError(f"it is an archive, unpack {names[0]} from it first")
    # What nobody asks for, such as an optimizer's state, is not read.
    return read_torch_file(path, is_mapped=True)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError):
        return f"it needs more memory than there is ({text})"
    if isinstance(error, _DAMAGED):
        return f"it is damaged, or not a checkpoint ({type(error).__name__}: {text.split('. ')[0]})"
    return text


def is_of_run(path: Path) -> bool:
    """Whether a path has the form in which runs save checkpoints."""
    return is_sharded(path) or zipfile.is_zipfile(path)


def check_file(path: Path) -> None:
    """Refuses a file of weights that is missing or empty; of a sharded checkpoint, `state.pth`.

    Raises:
        ValueError: there is no such file, or it is empty.
    """
    try:
        if is_sharded(path):
            path /= STATE_NAME
        is_file = path.is_file()
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        raise ValueError(f"the weights {path} cannot be reached: {error.strerror}") from error
    if not is_file:
        fault = "are a folder, not a file" if path.is_dir() else "do not exist"
        raise ValueError(f"the weights {path} {fault}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} cannot be loaded as weights: the file is empty")


def read_checkpoint_file(
    path: str | Path,
    *,
    is_mapped: bool = False,
    references: Mapping[str, Tensor] | None = None,
) -> dict[str, object]:
    """Reads a training state that a run has saved; nothing in it is executed.

    Args:
        path: what `torch.save` has written, of any name, or the folder of a sharded checkpoint.
        is_mapped: whether tensors may stay in the file until they are used, which leaves out what
            nobody uses; the file must then not be overwritten. Those of a folder are None.
        references: as of `read_tensors`, for the parts of a sharded checkpoint.

    Returns:
        As it was saved: numbers, strings, None and tensors (on the CPU; also for NumPy's arrays) in
        dicts, lists and tuples. Others are `Unread`.

    Raises:
        ValueError: the file is missing, empty, cut off or not a checkpoint, or asks to run code.
    """
    path = Path(path)
    check_file(path)
    if is_sharded(path):
        state = read_checkpoint_file(path / STATE_NAME)
        tensors = {} if is_mapped else read_tensors(path, references=references)
        return fill_tensors(state, tensors)
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
        path: `.safetensors`, `.npz`, the folder of a sharded checkpoint, or what `torch.save` has
            written or a pickle of NumPy's arrays (any other suffix).
        averaged: as of `unwrap_state_dict`.

    Returns:
        Tensors on the CPU by name, as `unwrap_state_dict` finds them.

    Raises:
        ValueError: the file is missing, empty, cut off or not a checkpoint, or asks to run code.
    """
    path = Path(path)
    check_file(path)
    try:
        return unwrap_state_dict(_read_any(path), averaged=averaged)
    except _NOT_WEIGHTS as error:
        raise ValueError(f"{path} cannot be loaded as weights: {_reason(error)}") from error


def _dense_tensors(content: Mapping[object, object]) -> StateDict:
    """Tensors by name; everything else is left out."""
    tensors = [(str(name), value) for name, value in content.items() if isinstance(value, Tensor)]
    if not tensors:
        raise ValueError(f"it has no tensors among {sorted(map(str, content))[:5]}")
    for name, value in content.items():
        if isinstance(value, Unread) and value.is_tensor:
            raise ValueError(f"{name} is {value.kind}, but only dense tensors can be loaded")
    result: StateDict = {}
    for name, tensor in tensors:
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise ValueError(
                f"it has a name that no model has, of {len(name)} characters: {name!a:.80}"
            )
        if name in result:
            raise ValueError(f"two of its entries are called {name}")
        result[name] = tensor
    return result


def unwrap_state_dict(content: object, *, averaged: bool = False) -> StateDict:
    """Finds the state dict in what a training code has saved.

    Follows `state_dict`, `model`, `module`, `model_state`, `teacher` and, if it has none
    of them, the averages `state_dict_ema`, `model_ema`, `ema_state_dict` and `ema`. Removes
    the `module.` of data parallel and the `_orig_mod.` of compiled models, and the `ema_*`
    copies that mmcv keeps beside the weights (like the official code, this uses the weights
    themselves).

    Args:
        content: what was read from a file.
        averaged: whether an average is preferred to the plain weights.

    Returns:
        The tensors by name.

    Raises:
        ValueError: there are no tensors, or two of their names become equal.
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
        short = _DATA_PARALLEL.sub("", name.replace("_orig_mod.", ""))
        if short in result:
            raise ValueError(f"two of its entries are called {short}")
        result[short] = tensor
    return result
