import argparse
import io
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from vitadapter.checkpoint.pickled_objects import Unread
from vitadapter.checkpoint.reading import read_torch_file

TYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool),
    *(torch.complex64, torch.complex128),
]
VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda t: t,
    lambda t: t.T,
    lambda t: t[1:, ::2],
    lambda t: t[:0],
    lambda t: t[1, 2],
    lambda t: t[:1].expand(7, -1),
    lambda t: t.contiguous().as_strided((2, 2), (1, 1), 3),
]
FORMATS = st.sampled_from([True, False])


def write(path: Path, content: object, *, is_zip: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


@given(st.sampled_from(TYPES), st.sampled_from(VIEWS), FORMATS, st.booleans(), st.booleans())
def test_tensors_are_those_that_pytorch_reads(
    tmp_path_factory,
    dtype: torch.dtype,
    view: Callable,
    is_zip: bool,
    is_mapped: bool,
    is_parameter,
) -> None:
    # PyTorch writes these in the old format, but cannot read them.
    assume(is_zip or dtype not in (torch.float8_e4m3fn, torch.uint16))
    values = torch.arange(60).reshape(6, 10).to(dtype)
    tensor = view(values)
    if is_parameter:
        tensor = torch.nn.Parameter(tensor, requires_grad=False)
    path = write(tmp_path_factory.mktemp("w") / "w.pth", {"a": tensor, "b": values}, is_zip=is_zip)
    found = read_torch_file(path, is_mapped=is_mapped)
    expected = torch.load(path, weights_only=True)
    for name, wanted in expected.items():
        assert found[name].dtype == wanted.dtype
        assert found[name].stride() == wanted.stride()
        assert torch.equal(found[name].to(torch.complex128), wanted.data.to(torch.complex128))


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("is_mapped", [True, False])
def test_shared_memory_stays_shared_and_the_file_as_it_is(
    is_zip: bool, is_mapped: bool, tmp_path: Path
) -> None:
    weight = torch.arange(6.0)
    path = write(tmp_path / "w.pth", {"a": weight, "b": weight.view(2, 3)}, is_zip=is_zip)
    before = path.read_bytes()
    found = read_torch_file(path, is_mapped=is_mapped)
    found["a"].zero_()
    assert not found["b"].any()
    assert path.read_bytes() == before


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_training_state_comes_back_whole(is_zip: bool, tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 4}
    path = write(tmp_path / "w.pth", content, is_zip=is_zip)
    found = read_torch_file(path, is_mapped=False)
    other = torch.optim.AdamW(torch.nn.Linear(3, 2).parameters())
    other.load_state_dict(found["optimizer"])
    assert found["iteration"] == 4
    assert found["optimizer"]["param_groups"] == content["optimizer"]["param_groups"]
    for index, state in content["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(found["optimizer"]["state"][index][name], value)


def test_objects_of_others_are_not_made(tmp_path: Path) -> None:
    others = {
        "args": argparse.Namespace(lr=0.1, folder=Path("a")),
        "best": np.float64(0.5),
        "array": np.array(["a", None]),
        "names": np.array(["a", "b"]),
        "type": np.dtype(np.float32),
        "device": torch.device("cuda:3"),
        "number": 1j,
        "bytes": bytearray(b"a"),
    }
    found = read_torch_file(write(tmp_path / "w.pth", others), is_mapped=True)
    assert found.keys() == others.keys()
    assert all(isinstance(value, Unread) and not value.is_tensor for value in found.values())


@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_dense_are_not_made(tmp_path: Path) -> None:
    dense = torch.eye(3)
    others = {
        "a sparse tensor": dense.to_sparse(),
        "a quantised tensor": torch.quantize_per_tensor(dense, 0.1, 0, torch.quint8),
        "a tensor without values": dense.to("meta"),
        "a conjugate or negated tensor": torch.complex(dense, dense).conj(),
        "a nested tensor": torch.nested.nested_tensor([dense, dense[:2]]),
    }
    others["a sparse tensor "] = dense.to_sparse_csr()
    found = read_torch_file(write(tmp_path / "w.pth", others), is_mapped=True)
    assert all(value.kind == key.strip() for key, value in found.items())
    assert all(value.is_tensor for value in found.values())


class Rebuilt:
    """Saved as a tensor with sizes that its storage does not have."""

    def __init__(self, *arguments: object, function: str = "_rebuild_tensor_v2") -> None:
        self._arguments, self._function = arguments, getattr(torch._utils, function)

    def __reduce__(self) -> tuple[object, ...]:
        storage = torch.ones(4).storage()
        return self._function, (storage, *self._arguments, False, OrderedDict())


@given(
    offset=st.integers(-3, 6),
    size=st.lists(st.integers(-1, 4), max_size=3),
    stride=st.lists(st.integers(-1, 4), max_size=3),
    is_zip=FORMATS,
)
@pytest.mark.filterwarnings("ignore")
def test_no_tensor_leaves_its_storage(
    tmp_path_factory, offset: int, size: list[int], stride: list[int], is_zip: bool
) -> None:
    path = tmp_path_factory.mktemp("w") / "w.pth"
    write(path, {"a": Rebuilt(offset, tuple(size), tuple(stride))}, is_zip=is_zip)
    is_valid = len(size) == len(stride) and min([offset, *size, *stride]) >= 0
    if is_valid and 0 not in size:
        is_valid = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) < 4
    if is_valid:
        assert read_torch_file(path, is_mapped=True)["a"].tolist() == torch.ones(size).tolist()
    else:
        with pytest.raises(ValueError, match=r"sizes|storage"):
            read_torch_file(path, is_mapped=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("size", "stride"),
    [
        ((2**50,), (0,)),
        ((2**50,), (1,)),
        ((2**62, 2**62), (0, 0)),
        ((0, 2**61), (1, 1)),
        ((1,) * 60, (1,) * 60),
        ((1.5,), (1,)),
        ((True,), (1,)),
    ],
)
def test_sizes_without_end(size: tuple[int, ...], stride: tuple[int, ...], tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", {"a": Rebuilt(0, size, stride)})
    with pytest.raises(ValueError, match=r"times as large as the file|sizes"):
        read_torch_file(path, is_mapped=True)


def change(path: Path, edit: Callable[[str, bytes], tuple[str, bytes]], **arguments: int) -> None:
    """Writes an archive again."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old:
        members = [edit(name, old.read(name)) for name in old.namelist()]
    with zipfile.ZipFile(path, "w", **arguments) as new:
        for name, data in members:
            new.writestr(name, data)


@pytest.mark.parametrize(
    ("edit", "arguments", "message"),
    [
        (lambda n, d: (n, d), {"compression": zipfile.ZIP_DEFLATED}, "archive is compressed"),
        (lambda n, d: (n, d[:-4] if "data/0" in n else d), {}, "storage 0 has 20 bytes, not 6"),
        (lambda n, d: (n.replace("data/0", "data/7"), d), {}, "the archive has no w/data/0"),
        (lambda n, d: (n.replace("data.pkl", "no.pkl"), d), {}, "one data.pkl, the archive has 0"),
        (lambda n, d: (n.replace("version", "constants.pkl"), d), {}, "a program"),
        (lambda n, d: (n, b"big" if "byteorder" in n else d), {}, "little-endian"),
    ],
)
def test_archives_that_torch_save_does_not_write(
    edit: Callable, arguments: dict[str, int], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "w.pth", {"a": torch.arange(6.0)})
    change(path, edit, **arguments)
    with pytest.raises(ValueError, match=message):
        read_torch_file(path, is_mapped=True)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path: Path) -> None:
    """Readers of archives differ in which of them they take."""
    path = write(tmp_path / "w.pth", {"a": torch.arange(6.0)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02N.")
    with pytest.raises(ValueError, match="same name"):
        read_torch_file(path, is_mapped=True)


def test_members_that_overlap(tmp_path: Path) -> None:
    """Each would be another copy of the file in memory."""
    tensors = {str(i): torch.full((4,), i) for i in range(64)}
    path = write(tmp_path / "w.pth", tensors)
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo("w/data/0").header_offset
    content = bytearray(path.read_bytes())
    for i in range(64):  # in the central directory: all are at the same place, and long
        entry = content.rindex(f"w/data/{i}PK".encode() if i < 63 else b"w/data/63") - 46
        content[entry + 20 : entry + 28] = struct.pack("<II", 2000, 2000)
        content[entry + 42 : entry + 46] = struct.pack("<I", first)
    path.write_bytes(content)
    for is_mapped in (True, False):
        with pytest.raises(ValueError, match="larger than the file"):
            read_torch_file(path, is_mapped=is_mapped)


def test_a_member_beyond_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", {"a": torch.arange(6.0)})
    content = bytearray(path.read_bytes())
    # Both sizes of data/0 in the central directory.
    entry = content.rindex(b"w/data/0") - 46
    size = len(content) - 100
    content[entry + 20 : entry + 28] = struct.pack("<II", size, size)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is cut off"):
        read_torch_file(path, is_mapped=True)
