import io
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize("maker", ["collections\nOrderedDict", "torch\nSize", "builtins\nset"])
def test_content_that_is_copied_again_and_again(maker: str) -> None:
    """A million copies of ten thousand values would fill any memory."""
    items = b"](" + (b"K\x01K\x02\x86" if "Dict" in maker else b"K\x01") * 10_000 + b"eq\x00"
    call = b"c" + maker.encode() + b"\nh\x00\x85R"
    with pytest.raises(ValueError, match=r"repeats its content too often|two of its entries"):
        read(wrap(items + b"](" + call * 20_000 + b"e"))
