"""Files of ``torch.save``: the zip archives of today, and what it wrote before version 1.6."""

import io
import mmap
import struct
import zipfile
from pathlib import Path

import torch

from vitadapter.checkpoint.pickle_names import Storage, storage_dtype
from vitadapter.checkpoint.pickles import PickleReader

__all__ = ["read_torch_file"]

_PICKLE = "data.pkl"
_MOST_PICKLE_BYTES = 2**26
_ZIP_START = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001


def read_torch_file(path: Path, *, is_mapped: bool) -> object:
    """Reads what ``torch.save`` has written; nothing in it is executed.

    Args:
        path: of a file that is not empty.
        is_mapped: whether tensors may stay in the file until they are used, which leaves out what
            nobody uses; the file must then not be overwritten. (Old files are always read.)

    Returns:
        As of :meth:`PickleReader.read`, tensors on the CPU.

    Raises:
        ValueError, and what zipfile, mmap and pickles raise: it is no such file, or damaged.
    """
    with path.open("rb") as file:
        # Private: a write into a tensor does not reach the file.
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if zipfile.is_zipfile(path):
        return _ZipFile(path, memory, is_mapped).read()
    if memory[:4] == _ZIP_START:
        raise ValueError("it is cut off: the end of the archive is missing")
    return _OldFile(memory).read()


def _part(memory: mmap.mmap, offset: int, size: int) -> torch.Tensor:
    """Bytes of the file, as uint8."""
    if offset + size > len(memory):
        raise ValueError(f"it is cut off: {offset + size} bytes are needed, it has {len(memory)}")
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=offset)


def _parse_storage_id(persistent_id: object, length: int) -> tuple[torch.dtype, str | int, int]:
    """(type of its values, key, number of its values)"""
    if not isinstance(persistent_id, tuple) or len(persistent_id) != length:
        raise ValueError("it refers to something that is no storage of a tensor")
    kind, storage_type, key, _, count, *view = persistent_id
    is_valid = kind == "storage" and isinstance(key, str | int) and all(v is None for v in view)
    if not is_valid or type(count) is not int or count < 0:
        raise ValueError("it refers to something that is no storage of a tensor")
    return storage_dtype(storage_type), key, count


class _ZipFile:
    """A folder with ``data.pkl`` and ``data/KEY`` for each storage, not compressed."""

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


class _OldFile:
    """Pickles one after the other (a number to know it by, version, system, content, keys of
    storages), then the storages: the number of their values, and these."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._storages: dict[str | int, Storage] = {}
        self._bytes_left = len(memory)

    def read(self) -> object:
        reader = PickleReader(self._storage, len(self._memory))
        if reader.read(self._memory) != _MAGIC_NUMBER:
            raise ValueError("it is not a file of torch.save")
        if reader.read(self._memory) != _PROTOCOL_VERSION:
            raise ValueError("it is of another version of torch.save")
        system = reader.read(self._memory)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("its numbers are not in little-endian order")
        content = reader.read(self._memory)
        keys = reader.read(self._memory)
        if not isinstance(keys, list) or not all(isinstance(key, str | int) for key in keys):
            raise ValueError("its list of storages is damaged")
        if set(keys) != self._storages.keys():
            raise ValueError("it lists other storages than its tensors use")
        for key in keys:
            self._fill(self._storages.pop(key))
        return content

    def _storage(self, persistent_id: object) -> Storage:
        """Of the right size; its values come later in the file."""
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
        torch.empty(0, dtype=torch.uint8).set_(storage.data, 0, (size,)).copy_(part)
        self._memory.seek(size, io.SEEK_CUR)
