"""Pickles as data: nothing that they name is imported or called.

PyTorch's ``weights_only`` calls some constructors with the file's arguments and trusts the shape of
what it builds: a file of 2 MB can end the process or keep it busy for ever. Here a pickle is a list
of instructions, and only those that make plain data and tensors are followed. A name stands for
plain data, for a tensor, or for something that is not read.
"""

import math
import mmap
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, BinaryIO, cast

import torch
from torch import Tensor

__all__ = ["PickleReader", "Storage", "Unread", "storage_dtype"]

# Far more than a training state has, and few enough to be read in seconds.
_MOST_INSTRUCTIONS = 4_000_000
_MOST_DIMENSIONS = 32
_DEEPEST_NESTING = 64
# Tensors may share memory, as tied weights do, or repeat it, but not without end.
_MOST_SHARING = 16
_SMALL_BYTES = 2**20
_SIZED = (str, bytes, list, tuple, dict, set)
# The longest tuple that may be the key of a dict.
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
# Other names of the same things: those of Python 2, and of other versions of NumPy and Python.
_SYNONYMS = (
    *(("__builtin__.", "builtins."), ("numpy._core.", "numpy.core.")),
    ("pathlib._local.", "pathlib."),
)


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
    """Memory of tensors, and the type of its values where the tensors do not state one."""

    dtype: torch.dtype
    data: torch.UntypedStorage


def _unread(kind: str, is_tensor: bool = False) -> Callable[..., Unread]:
    return lambda *_: Unread(kind, is_tensor)


def _first(value: object, *_: object) -> object:
    return value


def _ordered_dict(pairs: list[tuple[object, object]] | tuple[()] = ()) -> dict[object, object]:
    result: dict[object, object] = {}
    for key, value in pairs:
        _set_item(result, key, value)
    return result


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError("it has bytes in another encoding than latin1")
    return text.encode("latin1")


def _to_set(items: list[object]) -> set[object]:
    """The set of the items, which must be plain."""
    return {_checked_key(item) for item in items}


def _as_size(sizes: tuple[int, ...] | list[int]) -> tuple[int, ...]:
    """The tuple of the sizes, which need not be numbers."""
    if not isinstance(sizes, tuple | list):
        raise ValueError(f"it has a {type(sizes).__name__} as size")
    return tuple(sizes)


# How the objects that training codes save are made. The file's arguments reach no other function.
_MAKERS: Mapping[str, Callable[..., object]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": lambda counts: _ordered_dict(list(counts.items())),
    "builtins.bytes": lambda: b"",
    "builtins.set": _to_set,
    "_codecs.encode": _bytes,
    "torch.Size": _as_size,
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
            *("numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar"),
            *("numpy.dtype", "numpy.ndarray", "pathlib.PosixPath", "pathlib.PurePosixPath"),
            *("pathlib.PureWindowsPath", "pathlib.WindowsPath"),
            *("torch.device", "torch.serialization._get_layout"),
        )
    },
}
# A subclass of Tensor, or one with attributes, is read as a plain tensor.
_REBUILD_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
# Names that may be mentioned but are not called: types of tensors and of quantisers.
_MENTIONED = {
    _REBUILD_FROM_TYPE,
    "torch.Tensor",
    "torch._tensor.Tensor",
    *(f"torch.per_{kind}_affine" for kind in ("tensor", "channel")),
    *(f"torch.per_{kind}_symmetric" for kind in ("tensor", "channel")),
    "torch.per_channel_affine_float_qparams",
}
_REBUILD_TENSOR = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
_KNOWN = {*_MAKERS, *_MENTIONED, *_REBUILD_TENSOR, *_STORAGES}


def _checked_key(key: object) -> object:
    """A key of a dict, or member of a set, whose hash is quick to compute."""
    plain = (str, bytes, int, float, type(None), Unread)
    parts = key if isinstance(key, tuple) else (key,)
    if len(parts) <= _MOST_PARTS and all(isinstance(part, plain) for part in parts):
        return key
    raise ValueError(f"keys are names and numbers, got a {type(key).__name__}")


def _set_item(target: object, key: object, value: object) -> None:
    """Adds an entry to a dict that does not have it yet."""
    if type(target) is not dict:
        raise ValueError(f"it adds an entry to a {type(target).__name__}")
    if _checked_key(key) in target:
        raise ValueError(f"two of its entries are called {str(key)[:100]}")
    target[key] = value


def storage_dtype(name: object) -> torch.dtype:
    """The type of the values in a storage, from the name of its class."""
    if not isinstance(name, Name) or name.text not in _STORAGES:
        raise ValueError("it has a storage of tensors that PyTorch does not have")
    return _STORAGES[name.text]


def _resolve_name(name: str) -> object:
    """What a name stands for; refused unless it is plain data or a tensor."""
    for other, usual in _SYNONYMS:
        if name.startswith(other):
            name = usual + name.removeprefix(other)
    if name in _DTYPES:
        return _DTYPES[name]
    if name not in _KNOWN:
        raise ValueError(f"loading it would run code ({name[:100]}), which is refused")
    return Name(name)


def _make_object(name: Name, arguments: tuple[object, ...]) -> object:
    """What stands for the result of a call that does not make a dense tensor."""
    if name.text not in _MAKERS:
        raise ValueError(f"it calls {name.text}")
    return _MAKERS[name.text](*arguments)


# Instructions by what they take from the stack and leave on it.
_ARGUMENTS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES"),
}
_NEW: Mapping[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}
_FROM_MARK = {"TUPLE", "APPENDS", "SETITEMS", "ADDITEMS"}
_FROM_STACK = dict.fromkeys(("TUPLE1", "APPEND", "BUILD", "BINPERSID"), 1) | {
    **dict.fromkeys(("TUPLE2", "SETITEM", "STACK_GLOBAL", "REDUCE", "NEWOBJ"), 2),
    "TUPLE3": 3,
}


def _check_tree(
    value: object, known: dict[int, tuple[int, int]], depth: int = 0
) -> tuple[int, int]:
    """Number of values in it, counted as often as they are reached, and its number of levels.

    Both have a limit, so that a walk through all of it ends, and soon.
    """
    if not isinstance(value, dict | list | tuple):
        return 1, 0
    size, height = known.get(id(value), (0, 0))
    if size == 0 and depth <= _DEEPEST_NESTING:
        parts = value.values() if isinstance(value, dict) else value
        inner = [_check_tree(part, known, depth + 1) for part in parts]
        size = 1 + sum(size for size, _ in inner)
        height = 1 + max((height for _, height in inner), default=0)
        known[id(value)] = size, height
    if depth + height > _DEEPEST_NESTING:
        raise ValueError(f"it contains itself, or is nested deeper than {_DEEPEST_NESTING}")
    if size > _MOST_INSTRUCTIONS:
        raise ValueError(f"it has more than {_MOST_INSTRUCTIONS} values")
    return size, height


class PickleReader:
    """Reads the pickles of one file.

    Args:
        load_storage: returns the storage of a persistent id.
        file_bytes: size of the file, which limits the size of its tensors.
    """

    def __init__(self, load_storage: Callable[[object], Storage], file_bytes: int) -> None:
        self._load_storage = load_storage
        self._bytes_left = _MOST_SHARING * file_bytes + _SMALL_BYTES
        self._copies_left = file_bytes + _MOST_INSTRUCTIONS
        self._stack: list[object] = []
        self._marked: list[list[object]] = []
        self._memo: dict[object, object] = {}  # by number

    def read(self, file: BinaryIO | mmap.mmap) -> object:
        """The object of the next pickle.

        Args:
            file: at the beginning of the pickle; it is left at the end of it.

        Returns:
            Numbers, strings, bytes, ``None``, tensors (which share the memory of the storages) and
            :class:`Unread`, in dicts, lists, tuples and sets.

        Raises:
            ValueError: the pickle is damaged, names something that would be run, or exceeds a
                limit.
            IndexError, KeyError, TypeError, AttributeError: it is damaged.
        """
        self._stack, self._marked, self._memo = [], [], {}
        # It only calls `read` and `readline`, which an mmap has too.
        genops = pickletools.genops(cast(IO[bytes], file))
        for count, (opcode, argument, _) in enumerate(genops):
            if count > _MOST_INSTRUCTIONS:
                raise ValueError(f"it has more than {_MOST_INSTRUCTIONS} instructions")
            if opcode.name == "STOP":
                break
            self._follow(opcode.name, argument)
        value = self._stack.pop()
        _check_tree(value, {})
        return value

    def _follow(self, name: str, argument: object) -> None:
        stack = self._stack
        if name in _ARGUMENTS:
            stack.append(argument)
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name == "MARK":
            self._marked.append(stack)
            self._stack = []
        elif name in _FROM_MARK:
            items, self._stack = stack, self._marked.pop()
            self._collect(name, items)
        elif name in _FROM_STACK:
            count = _FROM_STACK[name]
            items = [stack.pop() for _ in range(count)][::-1]
            self._collect(name, items)
        elif name == "GLOBAL":
            stack.append(_resolve_name(str(argument).replace(" ", ".", 1)))
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it is not made of tensors alone ({name})")

    def _collect(self, name: str, items: list[object]) -> None:
        """Follows an instruction that takes values from the stack."""
        stack = self._stack
        if name.startswith("TUPLE"):
            stack.append(tuple(items))
        elif name.startswith("APPEND"):
            if type(stack[-1]) is not list:
                raise ValueError(f"it appends to a {type(stack[-1]).__name__}")
            stack[-1].extend(items)
        elif name.startswith("SETITEM"):
            for key, value in zip(items[::2], items[1::2], strict=True):
                _set_item(stack[-1], key, value)
        elif name == "ADDITEMS":
            if type(stack[-1]) is not set:
                raise ValueError(f"it adds to a {type(stack[-1]).__name__}")
            stack[-1].update(_to_set(items))
        elif name == "STACK_GLOBAL":
            stack.append(_resolve_name(".".join(cast(list[str], items))))
        elif name == "BINPERSID":
            stack.append(self._load_storage(items[0]))
        elif name == "BUILD":
            # No attributes are needed: those of a dict are versions, those of others are not read.
            if not isinstance(stack[-1], dict | Unread):
                raise ValueError(f"it sets attributes of a {type(stack[-1]).__name__}")
        else:  # REDUCE, NEWOBJ
            stack.append(self._make(*items))

    def _make(self, name: object, arguments: object) -> object:
        """What stands for the result of a call."""
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise ValueError(f"it calls a {type(name).__name__}")
        # A long argument that is used again and again would take unlimited time and memory.
        self._copies_left -= sum(len(a) for a in arguments if isinstance(a, _SIZED))
        if self._copies_left < 0:
            raise ValueError("it repeats its content too often")
        if name.text == _REBUILD_FROM_TYPE:
            return self._make(arguments[0], arguments[2])
        if name.text == "torch._utils._rebuild_tensor_v3":
            return self._tensor(*arguments[:4], *arguments[6:])
        if name.text in _REBUILD_TENSOR:
            return self._tensor(*arguments[:4], *(None, *arguments[6:]))
        return _make_object(name, arguments)

    def _tensor(
        self,
        storage: Storage,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        dtype: torch.dtype | None = None,
        metadata: object = None,
    ) -> Tensor | Unread:
        """A view of a storage, within its bounds."""
        if metadata:
            return Unread("a conjugate or negated tensor", is_tensor=True)
        dtype = dtype or storage.dtype
        size, stride = _as_size(size), _as_size(stride)
        if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor has {len(size)} sizes and {len(stride)} strides")
        numbers = (offset, *size, *stride)
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise ValueError("sizes of a tensor are not whole numbers, or out of range")
        item = dtype.itemsize
        self._bytes_left -= math.prod(max(n, 1) for n in size) * item
        if self._bytes_left < 0:
            raise ValueError(f"its tensors are over {_MOST_SHARING} times as large as the file")
        if 0 in size:
            return torch.empty(size, dtype=dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if (last + 1) * item > storage.data.nbytes():
            raise ValueError(
                f"a tensor of {(last + 1) * item} bytes is in a storage of {storage.data.nbytes()}"
            )
        return torch.empty(0, dtype=dtype).set_(storage.data, offset, size, stride)
