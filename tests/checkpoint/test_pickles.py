import io
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitadapter.checkpoint.pickled_objects import Unread
from vitadapter.checkpoint.pickles import PickleReader

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
)
KEYS = st.text(max_size=8) | st.integers() | st.tuples(st.text(max_size=3), st.integers())
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict)
    ),
    max_leaves=12,
)


def read(content: bytes) -> object:
    def no_storage(_: object) -> object:
        raise ValueError("there are no storages")

    return PickleReader(no_storage, len(content)).read(io.BytesIO(content))


@given(PLAIN, st.sampled_from([2, 3, 4]))
def test_plain_data_is_what_python_reads(value: object, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


def test_other_containers() -> None:
    assert read(pickle.dumps({1, "a"}, 2)) == {1, "a"}
    assert read(pickle.dumps({1, "a"}, 4)) == {1, "a"}
    assert read(pickle.dumps(Counter("aab"), 2)) == {"a": 2, "b": 1}
    shared = [1]
    first, second = read(pickle.dumps([shared, shared], 2))
    assert first is second


def in_itself() -> object:
    value: dict[str, object] = {}
    value["model"] = value
    return value


def doubled() -> object:
    """2^64 values."""
    value: object = []
    for _ in range(64):
        value = [value, value]
    return value


class Call:
    """Pickled as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self._call


def wrap(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(in_itself(), 2), "contains itself, or is nested deeper than 64"),
        (pickle.dumps(doubled(), 2), "more than 4000000 values|nested deeper"),
        # Tuples whose hash would overflow the stack of the process, or never be made.
        (wrap(b"})" + b"\x85" * 200_000 + b"K\x01s"), "keys are names and numbers, got a tuple"),
        (wrap(b"})" + b"q\x00h\x00\x86" * 64 + b"K\x01s"), "keys are names and numbers, got a tup"),
        (wrap(b")" + b"\x85" * 200_000), "nested deeper"),
        (wrap(b")" + b"q\x00h\x00\x86" * 64 + b")R"), "it calls a tuple"),
        (pickle.dumps(Call(eval, "1"), 2), r"would run code \(builtins\.eval\)"),
        (pickle.dumps(print, 2), r"would run code \(builtins\.print\)"),
        (wrap(b"]K\x01K\x02s"), "adds an entry to a"),
        (wrap(b"}K\x01a"), "appends to a dict"),
        (wrap(b"}X\x01\x00\x00\x00aK\x01sX\x01\x00\x00\x00aK\x02s"), "two of its entries are call"),
        (wrap(b"]K\x01b"), "sets attributes of a list"),
        (wrap(b"ccollections\nOrderedDict\nK\x01R"), "it calls a Name"),
        (wrap(b"ctorch\nFloatStorage\n)R"), "it calls torch.FloatStorage"),
        (wrap(b"K\x01K\x02\x93"), "whose name is no text"),
        (
            wrap(b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))N}tR"),
            "storage of a tensor has the type int",
        ),
        (wrap(b"ctorch\nSize\n](" + b"K\x01" * 33 + b"e\x85R"), "has 33 sizes"),
        (b"\x80\x02I1\n.", r"not made of tensors alone \(INT\)"),
        (b"\x80\x02N", "exhausted"),
    ],
)
def test_what_is_no_plain_data(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(content)


@pytest.mark.parametrize("body", [b"", b"a", b"h\x07", b"s", b"\x86", b"R", b"u", b"q\x00"])
def test_an_instruction_that_lacks_its_values(body: bytes) -> None:
    with pytest.raises((LookupError, ValueError)):
        read(wrap(body))


@pytest.mark.parametrize("maker", ["collections\nOrderedDict", "builtins\nset"])
def test_content_that_is_copied_again_and_again(maker: str) -> None:
    """A million copies of ten thousand values would fill any memory."""
    items = b"](" + (b"K\x01K\x02\x86" if "Dict" in maker else b"K\x01") * 10_000 + b"eq\x00"
    call = b"c" + maker.encode() + b"\nh\x00\x85R"
    with pytest.raises(ValueError, match=r"repeats its content too often|two of its entries"):
        read(wrap(items + b"](" + call * 20_000 + b"e"))


ARRAYS = {
    "scalar": np.array(2.5),
    "vector": np.arange(5),
    "empty": np.zeros((0, 3), np.float32),
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
    "strided": np.arange(24.0).reshape(4, 6)[::2, ::-3],
    "big-endian": np.arange(4, dtype=">f4"),
    "big-endian too": np.arange(3, dtype=">i2"),
    "flags": np.array([True, False]),
    "bytes": np.frombuffer(b"abc", np.uint8),
    "complex": np.array([1 + 2j]),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_are_what_numpy_reads(protocol: int) -> None:
    shared = np.ones(3, np.float32)
    content = {"model": ARRAYS | {"a": shared, "b": shared}, "__author__": "us"}
    found = read(pickle.dumps(content, protocol))
    assert found["__author__"] == "us"
    assert found["model"].keys() == content["model"].keys()
    for name, array in content["model"].items():
        tensor = found["model"][name]
        assert isinstance(tensor, torch.Tensor), name
        assert tensor.dtype == torch.from_numpy(array.astype(array.dtype.newbyteorder("="))).dtype
        assert tensor.shape == array.shape
        assert tensor.tolist() == array.tolist()
    found["model"]["vector"].add_(1)  # can be changed
    assert found["model"]["a"] is found["model"]["b"]


def test_the_pickles_of_python_2() -> None:
    """As those of Detectron2's older models: text for bytes, and NumPy's old names."""
    array = np.arange(3, dtype=np.float32)
    body = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x03\x85"
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x0c" + array.tobytes() + b"tb"
    )
    assert pickle.loads(wrap(body), encoding="latin1").tolist() == [0, 1, 2]
    assert read(wrap(body)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "array",
    [
        np.array([Call(eval, "1")], dtype=object),
        np.array(["text"]),
        np.array([b"text"]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]),
        np.zeros(2, dtype=np.longdouble),
    ],
)
def test_arrays_of_other_things_are_not_read(array: np.ndarray) -> None:
    """Or refused, if what is in them would be run."""
    for content in (pickle.dumps({"a": array}, protocol) for protocol in (2, 4, 5)):
        if array.dtype == object:
            with pytest.raises(ValueError, match=r"would run code \(builtins\.eval\)"):
                read(content)
            continue
        found = read(content)["a"]
        assert isinstance(found, Unread)
        assert not found.is_tensor


def change(array: np.ndarray, protocol: int, old: bytes, new: bytes) -> bytes:
    content = pickle.dumps(array, protocol)
    assert content.count(old) == 1
    return content.replace(old, new)


SMALL = np.arange(4, dtype=np.float32).reshape(2, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (change(SMALL, 5, b"K\x02K\x02\x86", b"K\x02K\x03\x86"), "size of its shape"),
        (change(SMALL, 2, b"K\x02K\x02\x86", b"K\x02K\x03\x86"), "size of its shape"),
        (change(SMALL, 4, b"K\x02K\x02\x86", b"K\x02\x88\x86"), "not whole numbers"),
        (change(SMALL, 4, b"K\x02K\x02\x86", b"K\x02N\x86"), "not whole numbers"),
        (change(SMALL, 5, b"\x8c\x01C", b"\x8c\x01K"), "an array of it is damaged"),
        (change(SMALL, 4, b"\x8c\x02f4", b"\x8c\x02f8"), "size of its shape"),
        (change(SMALL, 4, b"\x8c\x07ndarray", b"\x8c\x06matrix"), r"run code \(numpy\.matrix\)"),
        (change(SMALL, 4, b"\x8c\x07ndarray", b"\x8c\x05dtype"), "of a class that NumPy does not"),
        (wrap(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85RK\x01b"), "is damaged"),
        (
            wrap(
                b"cnumpy.core.numeric\n_frombuffer\n(C\x02abcnumpy\ndtype\nX\x02\0\0\0u1\x85R"
                b"K\x01K\x02\x86X\x01\0\0\0KK\x00K\x00\x86tR"
            ),
            "are no permutation",
        ),
        (
            wrap(
                b"cnumpy.core.numeric\n_frombuffer\n(C\x02abcnumpy\ndtype\nX\x02\0\0\0u1\x85R"
                b"](" + b"K\x01" * 33 + b"eX\x01\0\0\0CtR"
            ),
            "has 33 sizes",
        ),
    ],
)
def test_damaged_arrays(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(content)


def test_an_array_that_is_made_again_and_again() -> None:
    """A million copies of ten thousand values would fill any memory."""
    maker = b"cnumpy.core.numeric\n_frombuffer\n"
    data = b"B" + (400_000).to_bytes(4, "little") + bytes(400_000) + b"q\x00"
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85Rq\x01"
    call = maker + b"(h\x00h\x01J\xa0\x86\x01\x00\x85X\x01\x00\x00\x00CtR"
    assert len(read(wrap(data + dtype + b"](" + call * 2 + b"e"))) == 2
    with pytest.raises(ValueError, match="repeats its content too often"):
        read(wrap(data + dtype + b"](" + call * 1000 + b"e"))
