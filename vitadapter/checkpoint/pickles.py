"""Pickles as data: nothing that they name is imported or called.

PyTorch's `weights_only` calls some constructors with the file's arguments and trusts the shape of
what it builds: a file of 2 MB can end the process or keep it busy for ever. Here a pickle is a list
of instructions, and only those that make plain data and tensors are followed. A name stands for
plain data, for a tensor, or for something that is not read.
"""

import math
import mmap
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, BinaryIO, cast

import torch
from torch import Tensor

from vitadapter.checkpoint.pickled_objects import (
    REBUILD_FROM_TYPE,
    REBUILD_TENSOR,
    Name,
    PickledArray,
    PickledDtype,
    Storage,
    Unread,
    as_size,
    make_object,
    resolve_name,
    set_item,
    to_set,
)

__all__ = ["PickleReader"]

# Far more than a training state has, and few enough to be read in seconds.
_MOST_INSTRUCTIONS = 4_000_000
_DEEPEST_NESTING = 64
# Tensors may share memory, as tied weights do, or repeat it, but not without end.
_MOST_SHARING = 16
_SMALL_BYTES = 2**20
_SIZED = (str, bytes, bytearray, list, tuple, dict, set)

# Instructions by what they take from the stack and leave on it.
_ARGUMENTS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINUNICODE8"),
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
        # The bytes of an array are copied once, or twice where they were written as text.
        self._copies_left = 2 * file_bytes + _MOST_INSTRUCTIONS
        self._stack: list[object] = []
        self._marked: list[list[object]] = []
        self._memo: dict[object, object] = {}  # by number

    def read(self, file: BinaryIO | mmap.mmap) -> object:
        """The object of the next pickle.

        Args:
            file: at the beginning of the pickle; it is left at the end of it.

        Returns:
            Numbers, strings, bytes, `None`, tensors (which share the memory of the storages, or
            are copies of NumPy's arrays) and `Unread`, in dicts, lists, tuples and sets.

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
            value = self._memo[argument]
            if isinstance(value, PickledArray) and value.value is not None:
                value = value.value
            stack.append(value)
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
            stack.append(resolve_name(str(argument).replace(" ", ".", 1)))
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
                set_item(stack[-1], key, value)
        elif name == "ADDITEMS":
            if type(stack[-1]) is not set:
                raise ValueError(f"it adds to a {type(stack[-1]).__name__}")
            stack[-1].update(to_set(items))
        elif name == "STACK_GLOBAL":
            module, attribute = items
            if not isinstance(module, str) or not isinstance(attribute, str):
                raise ValueError("it mentions something whose name is no text")
            stack.append(resolve_name(f"{module}.{attribute}"))
        elif name == "BINPERSID":
            stack.append(self._load_storage(items[0]))
        elif name == "BUILD":
            self._build(items[0])
        else:  # REDUCE, NEWOBJ
            stack.append(self._make(*items))

    def _build(self, state: object) -> None:
        """Sets what the last object consists of.

        Attributes of a dict (its versions) and of what is not read are not needed.
        """
        target = self._stack[-1]
        if isinstance(target, PickledArray | PickledDtype):
            self._count_copies(state if isinstance(state, tuple) else ())
            self._stack[-1] = target.build(state)
        elif not isinstance(target, dict | Unread):
            raise ValueError(f"it sets attributes of a {type(target).__name__}")

    def _count_copies(self, parts: tuple[object, ...]) -> None:
        """A long argument that is used again and again would take time and memory without end."""
        self._copies_left -= sum(len(part) for part in parts if isinstance(part, _SIZED))
        if self._copies_left < 0:
            raise ValueError("it repeats its content too often")

    def _make(self, name: object, arguments: object) -> object:
        """What stands for the result of a call."""
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise ValueError(f"it calls a {type(name).__name__}")
        self._count_copies(arguments)
        if name.text == REBUILD_FROM_TYPE:
            return self._make(arguments[0], arguments[2])
        if name.text in REBUILD_TENSOR:
            has_dtype = name.text.endswith("_v3")  # before its metadata
            return self._tensor(*arguments[:4], *(() if has_dtype else (None,)), *arguments[6:])
        return make_object(name, arguments)

    def _tensor(
        self,
        storage: object,
        offset: object,
        size: object,
        stride: object,
        dtype: object = None,
        metadata: object = None,
    ) -> Tensor | Unread:
        """A view of a storage, within its bounds."""
        if metadata:
            return Unread("a conjugate or negated tensor", is_tensor=True)
        if not isinstance(storage, Storage):
            raise ValueError(f"the storage of a tensor has the type {type(storage).__name__}")
        dtype = storage.dtype if dtype is None else dtype
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"the dtype of a tensor has the type {type(dtype).__name__}")
        (start,), sizes, strides = as_size((offset,)), as_size(size), as_size(stride)
        if len(sizes) != len(strides):
            raise ValueError(f"a tensor has {len(sizes)} sizes and {len(strides)} strides")
        item = dtype.itemsize
        self._bytes_left -= math.prod(max(n, 1) for n in sizes) * item
        if self._bytes_left < 0:
            raise ValueError(f"its tensors are over {_MOST_SHARING} times as large as the file")
        if 0 in sizes:
            return torch.empty(sizes, dtype=dtype)
        last = start + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        if (last + 1) * item > storage.data.nbytes():
            raise ValueError(
                f"a tensor of {(last + 1) * item} bytes is in a storage of {storage.data.nbytes()}"
            )
        return torch.empty(0, dtype=dtype).set_(storage.data, start, sizes, strides)
