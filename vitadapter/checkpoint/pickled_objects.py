"""What pickles may name: plain data, tensors, NumPy's arrays, and what stands for anything else.

Nothing here imports or calls what a file names; arguments that a file gives are checked.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "REBUILD_FROM_TYPE",
    "REBUILD_TENSOR",
    "Name",
    "PickledArray",
    "PickledDtype",
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
    "torch.storage.UntypedStorage": torch.uint8,
    **{
        f"torch.{name}Storage": dtype
        for name, dtype in (
            *(("Double", torch.float64), ("Float", torch.float32), ("Half", torch.float16)),
            *(("BFloat16", torch.bfloat16), ("Long", torch.int64), ("Int", torch.int32)),
            *(("Short", torch.int16), ("Char", torch.int8), ("Byte", torch.uint8)),
            *(("Bool", torch.bool), ("QInt8", torch.qint8), ("QUInt8", torch.quint8)),
            *(("QInt32", torch.qint32), ("ComplexFloat", torch.complex64)),
            ("ComplexDouble", torch.complex128),
        )
    },
}
# Other names of the same things: of Python 2, and of versions of NumPy and Python.
_SYNONYMS = (
    *(("__builtin__.", "builtins."), ("numpy._core.", "numpy.core.")),
    ("pathlib._local.", "pathlib."),
)


@dataclass(eq=False)
class Unread:
    """Stands for an object that is neither plain data, nor a dense tensor, nor an array of numbers.

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


def _first(value: object, *_: object) -> object:
    return value


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


def as_size(sizes: object) -> tuple[int, ...]:
    """The tuple of the sizes, strides or axes of a tensor."""
    if not isinstance(sizes, tuple | list):
        raise ValueError(f"it has a {type(sizes).__name__} as size")
    if len(sizes) > _MOST_PARTS:
        raise ValueError(f"a tensor has {len(sizes)} sizes")
    if not all(type(size) is int and 0 <= size < 2**62 for size in sizes):
        raise ValueError("sizes of a tensor are not whole numbers, or out of range")
    return tuple(sizes)


# NumPy's codes of numbers, without the byte order.
_NUMBER_CODES = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)")


@dataclass(eq=False)
class PickledDtype(Unread):
    """One of NumPy's types, which first has the byte order of this machine."""

    code: str = ""

    @classmethod
    def make(cls, code: object, *_: object) -> Unread:
        """As `numpy.dtype(code)` makes it."""
        return cls("numpy.dtype", code=code if isinstance(code, str) else "")

    def build(self, state: object) -> "PickledDtype":
        """Sets the byte order; what else the state has is of types that are no numbers."""
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order == ">":
            self.code = f">{self.code.removeprefix('>')}"
        return self


@dataclass(eq=False)
class PickledArray(Unread):
    """One of NumPy's arrays, whose content comes later.

    Attributes:
        value: what it is, once that is known: a tensor, or something unread if it does not hold
            numbers.
    """

    value: Tensor | Unread | None = None

    @classmethod
    def make(cls, kind: object, *_: object) -> "PickledArray":
        """As `numpy.core.multiarray._reconstruct` makes an empty one."""
        if not isinstance(kind, Name) or kind.text != "numpy.ndarray":
            raise ValueError("it has an array of a class that NumPy does not have")
        return cls("an array without content")

    def build(self, state: object) -> Tensor | Unread:
        """Sets shape and content."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):  # without version, or with
            raise ValueError("an array of it is damaged")
        *_, shape, dtype, is_fortran, data = state
        self.value = _to_tensor(data, dtype, shape, "F" if is_fortran is True else "C")
        return self.value


def _to_tensor(
    data: object, dtype: object, shape: object, order: object, axes: object = None
) -> Tensor | Unread:
    """A copy of an array of numbers, as `numpy.core.numeric._frombuffer` makes it.

    Args:
        data: the numbers one after the other.
        dtype: their type, which says the byte order too.
        shape: of the array before its axes are permuted.
        order: "C" if the last axis is contiguous, "F" if the first is, "K" with `axes`.
        axes: by which the axes are permuted; None for not at all.
    """
    is_ordered = order in ("C", "F") if axes is None else order == "K"
    if not isinstance(dtype, PickledDtype) or not is_ordered:
        raise ValueError("an array of it is damaged")
    if not _NUMBER_CODES.fullmatch(dtype.code.removeprefix(">")):
        return Unread(f"an array of NumPy's {dtype.code!a:.20}")
    size = as_size(shape)
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    kind = np.dtype(dtype.code)
    if not isinstance(data, bytes | bytearray) or math.prod(size) * kind.itemsize != len(data):
        raise ValueError("the content of an array does not have the size of its shape")
    array = np.frombuffer(data, kind).astype(kind.newbyteorder("="))
    array = array.reshape(size, order="F" if order == "F" else "C")
    if axes is not None:
        if sorted(as_size(axes)) != [*range(array.ndim)]:
            raise ValueError("the axes of an array are no permutation")
        array = array.transpose(as_size(axes))
    return torch.from_numpy(array)


# What is made of the objects that training codes save; the file's arguments reach nothing else.
_MAKERS: Mapping[str, Callable[..., object]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": lambda counts: _ordered_dict(list(counts.items())),
    "builtins.bytes": lambda: b"",
    "builtins.set": to_set,
    "_codecs.encode": _bytes,
    "torch.Size": as_size,
    "numpy.dtype": PickledDtype.make,
    "numpy.core.multiarray._reconstruct": PickledArray.make,
    "numpy.core.numeric._frombuffer": _to_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.nn.parameter.Parameter": _first,
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
            *("argparse.Namespace", "builtins.bytearray", "builtins.complex"),
            *("numpy.core.multiarray.scalar", "numpy.ndarray"),
            *("pathlib.PosixPath", "pathlib.PurePosixPath"),
            *("pathlib.PureWindowsPath", "pathlib.WindowsPath"),
            *("torch.device", "torch.serialization._get_layout"),
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
REBUILD_TENSOR = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
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
    """Of the values in a storage whose class the file mentions."""
    if not isinstance(name, Name) or name.text not in _STORAGES:
        raise ValueError("it has a storage of tensors that PyTorch does not have")
    return _STORAGES[name.text]


def resolve_name(name: str) -> object:
    """What a name stands for; names that are not of tensors or plain data are refused."""
    for other, usual in _SYNONYMS:
        if name.startswith(other):
            name = usual + name.removeprefix(other)
    if name in _DTYPES:
        return _DTYPES[name]
    if name not in _KNOWN:
        raise ValueError(f"loading it would run code ({name[:100]}), which is refused")
    return Name(name)


def make_object(name: Name, arguments: tuple[object, ...]) -> object:
    """What stands for a call of something that is no tensor of memory."""
    if name.text not in _MAKERS:
        raise ValueError(f"it calls {name.text}")
    return _MAKERS[name.text](*arguments)
