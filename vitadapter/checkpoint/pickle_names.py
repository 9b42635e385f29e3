"""What the names in a pickle stand for: plain data, tensors, or something that is not read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "REBUILD_FROM_TYPE",
    "REBUILD_TENSOR",
    "Name",
    "Storage",
    "Unread",
    "as_size",
    "make_object",
    "resolve_name",
    "set_item",
    "storage_dtype",
    "to_set",
]

# More is no size of a tensor, and no key of a dict.
_MOST_PARTS = 32

_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.QInt8Storage": torch.qint8,
    "torch.QUInt8Storage": torch.quint8,
    "torch.QInt32Storage": torch.qint32,
    "torch.storage.UntypedStorage": torch.uint8,
}
# Other names of the same things: of Python 2, and of versions of NumPy and Python.
_SYNONYMS = {
    "__builtin__.": "builtins.",
    "numpy._core.": "numpy.core.",
    "pathlib._local.": "pathlib.",
}


@dataclass(frozen=True, eq=False)
class Unread:
    """Stands for an object that is neither plain data nor a dense tensor, such as NumPy's.

    Attributes:
        kind: what it is called in messages.
        is_tensor: whether it is a tensor that is not dense, or without values.
    """

    kind: str
    is_tensor: bool = False


@dataclass(frozen=True)
class Name:
    """A class or function that the file mentions."""

    text: str


@dataclass(frozen=True, eq=False)
class Storage:
    """Memory of tensors, and what its values are where the tensors do not say so."""

    dtype: torch.dtype
    data: torch.UntypedStorage


def _unread(kind: str, is_tensor: bool = False) -> Callable[..., Unread]:
    return lambda *_: Unread(kind, is_tensor)


def _ordered_dict(pairs: list[tuple[object, object]] | tuple[()] = ()) -> dict[object, object]:
    result: dict[object, object] = {}
    for key, value in pairs:
        set_item(result, key, value)
    return result


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError("it has bytes in another encoding than latin1")
    return text.encode("latin1")


def to_set(items: list[object]) -> set[object]:
    """The set of the items, which must be plain."""
    return {_checked_key(item) for item in items}


def as_size(sizes: tuple[int, ...] | list[int]) -> tuple[int, ...]:
    """The tuple of the sizes, which need not be numbers."""
    if not isinstance(sizes, tuple | list):
        raise ValueError(f"it has a {type(sizes).__name__} as size")
    return tuple(sizes)


def _parameter(data: Tensor, *_: object) -> Tensor:
    return data


# What is made of the objects that training codes save; the file's arguments reach nothing else.
_MAKERS: Mapping[str, Callable[..., object]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": lambda counts: _ordered_dict(list(counts.items())),
    "builtins.bytes": lambda: b"",
    "builtins.set": to_set,
    "_codecs.encode": _bytes,
    "torch.Size": as_size,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    **{
        f"torch._utils._rebuild_{name}": _unread(kind, is_tensor=True)
        for name, kind in (
            ("sparse_tensor", "a sparse tensor"),
            ("qtensor", "a quantised tensor"),
            ("nested_tensor", "a nested tensor"),
            ("meta_tensor_no_storage", "a tensor without values"),
            ("wrapper_subclass", "a tensor without values"),
            ("device_tensor_from_numpy", "a tensor of another device"),
            ("device_tensor_from_cpu_tensor", "a tensor of another device"),
        )
    },
    **{
        name: _unread(name)
        for name in (
            "argparse.Namespace",
            "builtins.bytearray",
            "builtins.complex",
            "numpy.core.multiarray._reconstruct",
            "numpy.core.multiarray.scalar",
            "numpy.dtype",
            "numpy.ndarray",
            "pathlib.PosixPath",
            "pathlib.PurePosixPath",
            "pathlib.PureWindowsPath",
            "pathlib.WindowsPath",
            "torch.device",
            "torch.serialization._get_layout",
        )
    },
}
# Of a subclass of Tensor, or one with attributes: the plain tensor.
REBUILD_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
# Names that are only mentioned: the types of tensors and quantisers that are not built.
_MENTIONED = {
    REBUILD_FROM_TYPE,
    "torch.Tensor",
    "torch._tensor.Tensor",
    *(f"torch.per_{kind}_affine" for kind in ("tensor", "channel")),
    *(f"torch.per_{kind}_symmetric" for kind in ("tensor", "channel")),
    "torch.per_channel_affine_float_qparams",
}
REBUILD_TENSOR = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
}
_KNOWN = {*_MAKERS, *_MENTIONED, *REBUILD_TENSOR, *_STORAGES}


def _checked_key(key: object) -> object:
    """A key of a dict, or member of a set, whose hash is quickly made."""
    plain = (str, bytes, int, float, type(None), Unread)
    parts = key if isinstance(key, tuple) else (key,)
    if len(parts) <= _MOST_PARTS and all(isinstance(part, plain) for part in parts):
        return key
    raise ValueError(f"keys are names and numbers, got a {type(key).__name__}")


def set_item(target: object, key: object, value: object) -> None:
    """Adds an entry to a dict that does not have it."""
    if type(target) is not dict:
        raise ValueError(f"it adds an entry to a {type(target).__name__}")
    if _checked_key(key) in target:
        raise ValueError(f"two of its entries are called {str(key)[:100]}")
    target[key] = value


def storage_dtype(name: object) -> torch.dtype:
    """Of the values in a storage whose class the file mentions.

    Raises:
        ValueError: there is no such class.
    """
    if not isinstance(name, Name) or name.text not in _STORAGES:
        raise ValueError("it has a storage of tensors that PyTorch does not have")
    return _STORAGES[name.text]


def resolve_name(name: str) -> object:
    """What a name stands for; names that are not of tensors or plain data are refused."""
    for other, usual in _SYNONYMS.items():
        if name.startswith(other):
            name = usual + name.removeprefix(other)
    if name in _DTYPES:
        return _DTYPES[name]
    if name not in _KNOWN:
        raise ValueError(f"loading it would run code ({name[:100]}), which is refused")
    return Name(name)


def make_object(name: Name, arguments: tuple[object, ...]) -> object:
    """What stands for a call of something that is no tensor of memory.

    Raises:
        ValueError: it is nothing that is called.
        TypeError, AttributeError: the arguments are not those that it has.
    """
    if name.text not in _MAKERS:
        raise ValueError(f"it calls {name.text}")
    return _MAKERS[name.text](*arguments)
