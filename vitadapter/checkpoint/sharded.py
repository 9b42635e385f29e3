"""Checkpoints that are folders: PyTorch's distributed checkpoints, and one file beside them.

The tensors of a run are in the files of `torch.distributed.checkpoint`, which processes write and
read in parts, whatever their number. `state.pth` has everything else, and None for each tensor.
"""

import inspect
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = [
    "SHARDED_SUFFIX",
    "STATE_NAME",
    "cause_of",
    "check_pytorch",
    "divide_like",
    "fill_tensors",
    "is_sharded",
    "local_part",
    "named_tensors",
    "read_tensors",
    "without_tensors",
]

SHARDED_SUFFIX = ".dcp"
"""How the names of such folders end."""

STATE_NAME = "state.pth"
"""The file with everything but tensors."""

_METADATA_NAME = ".metadata"
# What PyTorch's metadata consists of; none of it runs anything.
_CLASSES = {
    "torch.distributed.checkpoint.metadata": [*metadata.__all__, "_MEM_FORMAT_ENCODING"],
    "torch.distributed.checkpoint.filesystem": ["_StorageInfo"],
    "torch.serialization": ["_get_layout"],
    "torch": ["Size", *(n for n, found in vars(torch).items() if isinstance(found, torch.dtype))],
    "pathlib": ["PosixPath", "PurePosixPath"],
    "pathlib._local": ["PosixPath", "PurePosixPath"],
    "collections": ["OrderedDict"],
}


def is_sharded(path: Path) -> bool:
    """Whether a path is, by its name, a checkpoint that is a folder, and there is a folder."""
    return path.suffix == SHARDED_SUFFIX and path.is_dir()


def local_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, in the same memory; all of it unless it is sharded."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def divide_like(
    tensors: Mapping[str, Tensor], references: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Divides whole tensors between processes, as the tensors of the same names are.

    Args:
        tensors: the same in all processes.
        references: those to be like; tensors without one, or of another shape, stay whole.
    """
    divided: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        like = references.get(name)
        divided[name] = tensor
        if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
            continue
        if like.shape == tensor.shape:
            tensor = tensor.to(like.device)
            divided[name] = distribute_tensor(tensor, like.device_mesh, like.placements)
    return divided


def _joined(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _items(content: object) -> Iterator[tuple[object, object]] | None:
    """Keys and values of what may have tensors inside; None for anything else."""
    if isinstance(content, Mapping):
        return iter(content.items())
    return iter(enumerate(content)) if isinstance(content, list | tuple) else None


def named_tensors(content: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dicts, lists and tuples, with dotted names.

    Args:
        content: what to look into.
        name: of the content itself.
    """
    if isinstance(content, Tensor):
        yield name, content
    for key, value in _items(content) or ():
        yield from named_tensors(value, _joined(name, key))


def _replaced(content: object, name: str, new: Callable[[object, str], object]) -> Any:
    """A copy of nested dicts, lists and tuples with other values at the ends."""
    if isinstance(content, Mapping):
        return {key: _replaced(value, _joined(name, key), new) for key, value in content.items()}
    if isinstance(content, list | tuple):
        parts = [_replaced(value, _joined(name, key), new) for key, value in enumerate(content)]
        return parts if isinstance(content, list) else tuple(parts)
    return new(content, name)


def without_tensors(content: Mapping[str, object]) -> dict[str, object]:
    """A copy of nested dicts, lists and tuples that has None for each tensor."""
    return _replaced(content, "", lambda end, name: None if isinstance(end, Tensor) else end)


def fill_tensors(content: Mapping[str, object], tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """A copy of what `without_tensors` has made, with tensors by their dotted names."""
    return _replaced(content, "", lambda end, name: tensors.get(name, end))


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _CLASSES.get(module, ()):
            raise ValueError(f"{_METADATA_NAME} names {module}.{name}, which is none of its parts")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    """PyTorch's, except that it runs nothing that the metadata names, and checks the files."""

    def read_metadata(self, *args: object, **kwargs: object) -> metadata.Metadata:
        folder = Path(self.path)
        if not (folder / _METADATA_NAME).is_file():
            raise ValueError(f"it has no {_METADATA_NAME}: it was never completed")
        with (folder / _METADATA_NAME).open("rb") as file:
            found = _unpickle(file)
        if not isinstance(found, metadata.Metadata) or not isinstance(found.storage_data, dict):
            raise ValueError(f"its {_METADATA_NAME} is not that of a distributed checkpoint")
        _check_files(folder, found)
        found.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return found


def _unpickle(file: IO[bytes]) -> object:
    try:
        return _MetadataUnpickler(file).load()
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"its {_METADATA_NAME} is damaged ({error})") from error


def _check_files(folder: Path, found: metadata.Metadata) -> None:
    """Refuses missing and cut files, before tensors are made for what they should hold."""
    ends: dict[str, int] = {}
    for part in found.storage_data.values():
        is_valid = isinstance(part, filesystem._StorageInfo) and isinstance(part.relative_path, str)
        if not is_valid or Path(part.relative_path).name != part.relative_path:
            raise ValueError(f"its {_METADATA_NAME} names a file outside of it")
        end = int(part.offset) + int(part.length)
        ends[part.relative_path] = max(ends.get(part.relative_path, 0), end)
    missing = sorted(name for name in ends if not (folder / name).is_file())
    if missing:
        raise ValueError(f"{len(missing)} of its {len(ends)} files are missing: {missing[0]}")
    for name, end in ends.items():
        if (size := (folder / name).stat().st_size) < end:
            raise ValueError(f"{name} is cut off: {end} bytes are needed, it has {size}")
    kinds = _tensor_kinds(found).values()
    needed = sum(kind.size.numel() * kind.properties.dtype.itemsize for kind in kinds)
    if needed > sum((folder / name).stat().st_size for name in ends):
        raise ValueError("its tensors are larger than its files")


def _tensor_kinds(found: metadata.Metadata) -> dict[str, metadata.TensorStorageMetadata]:
    """The entries of a checkpoint by name."""
    kinds: dict[str, metadata.TensorStorageMetadata] = {}
    for name, kind in found.state_dict_metadata.items():
        if not isinstance(kind, metadata.TensorStorageMetadata):
            raise ValueError(f"{name} is no tensor, which this project never saves so")
        kinds[name] = kind
    return kinds


def read_tensors(
    folder: Path,
    is_wanted: Callable[[str], bool] = lambda name: True,
    references: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Reads tensors of a checkpoint that any number of processes has saved.

    Args:
        folder: of the checkpoint.
        is_wanted: tells by their dotted names which tensors are read.
        references: tensors by dotted name; where one is sharded, each process reads its part only.

    Returns:
        Tensors by dotted name, on the CPU, or where the reference is.

    Raises:
        ValueError: files are missing, cut off or damaged; says which.
    """
    check_pytorch()
    reader = _Reader(folder)
    tensors: dict[str, Tensor] = {}
    try:
        for name, kind in _tensor_kinds(reader.read_metadata()).items():
            if is_wanted(name):
                like = (references or {}).get(name)
                tensors[name] = _empty(kind.size, kind.properties.dtype, like)
        with warnings.catch_warnings():
            # That processes read without telling each other, which is what is asked for.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        cause = cause_of(error)
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise ValueError(f"{folder} cannot be loaded: {reason:.300}") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{folder} cannot be loaded: {error}") from error
    return tensors


def check_pytorch() -> None:
    """Refuses a PyTorch that can neither write nor read such folders.

    Raises:
        ValueError: says so.
    """
    if "no_dist" not in inspect.signature(dcp.async_save).parameters:
        raise ValueError(
            f"train.parallel=fsdp2 and its checkpoints need a newer PyTorch than "
            f"{torch.__version__}: update it, or train with train.parallel=ddp"
        )


def cause_of(error: BaseException) -> BaseException:
    """What has failed in the first process that failed, behind PyTorch's summary.

    Args:
        error: of PyTorch's distributed checkpoints, or any other, which is its own cause.
    """
    failures = error.failures.values() if isinstance(error, CheckpointException) else ()
    return next((found for found, _ in failures), error)


def _empty(size: torch.Size, dtype: torch.dtype, like: Tensor | None) -> Tensor:
    if isinstance(like, DTensor) and like.shape == size:
        return torch.empty_like(like, dtype=dtype, requires_grad=False)
    return torch.empty(size, dtype=dtype)
