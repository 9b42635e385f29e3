import argparse
import io
import os
import pickle
import pickletools
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitadapter.checkpoint.pickled_objects import Unread
from vitadapter.checkpoint.reading import (
    read_checkpoint_file,
    read_state_dict,
    unwrap_state_dict,
)
from vitadapter.engine.checkpoint import AtomicCheckpointer

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


class Malicious:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def check(read: dict[str, Tensor]) -> None:
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], WEIGHTS[name]) for name in WEIGHTS)


def test_every_kind_of_file(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", **{name: tensor.numpy() for name, tensor in WEIGHTS.items()})
    for name in ("w.pth", "w.pt", "w.bin", "w.pth.tar", "w.pkl"):
        torch.save({"model": WEIGHTS, "epoch": 3}, tmp_path / name)
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in sorted(tmp_path.iterdir()):
        check(read_state_dict(path))


def test_our_own_training_state(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    AtomicCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model", iteration=4)
    read = read_state_dict(tmp_path / "model.pth")
    assert read.keys() == {"weight", "bias"}
    assert torch.equal(read["weight"], model.weight)


@pytest.mark.parametrize(
    "wrapper",
    ["state_dict", "model", "module", "teacher", "model_ema", "ema_state_dict", "ema"],
)
def test_wrappers_and_prefixes(wrapper: str) -> None:
    content = {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}
    check(unwrap_state_dict({wrapper: content, "optimizer": {"state": {}}, "epoch": 7}))
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in WEIGHTS.items()}
    check(unwrap_state_dict({"checkpoint": 1, wrapper: {"state_dict": compiled}}))


def test_the_weights_are_taken_before_their_average() -> None:
    average = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    check(unwrap_state_dict({"state_dict_ema": average, "state_dict": WEIGHTS}))
    for name in ("model_ema", "ema_state_dict", "ema"):
        check(unwrap_state_dict({name: average, "model": WEIGHTS}))
    mmcv = {f"ema_{name.replace('.', '_')}": tensor for name, tensor in average.items()}
    check(unwrap_state_dict({"state_dict": WEIGHTS | mmcv}))


@pytest.mark.parametrize("wrapper", ["state_dict_ema", "model_ema"])
def test_the_average_where_it_is_asked_for(wrapper: str, tmp_path: Path) -> None:
    plain = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    content = {"state_dict": plain, "model": plain, wrapper: WEIGHTS}
    check(unwrap_state_dict(content, averaged=True))
    torch.save(content, tmp_path / "w.pth")
    check(read_state_dict(tmp_path / "w.pth", averaged=True))
    check(unwrap_state_dict({"model": WEIGHTS}, averaged=True))


def test_harmless_data_beside_the_weights(tmp_path: Path) -> None:
    """MAE and BEiT save their arguments, mmcv a best score as a NumPy number, or a palette."""
    arguments = argparse.Namespace(lr=0.1, output_dir=Path("runs/1"))
    meta = {"score": np.float64(0.5), "PALETTE": np.zeros((2, 3), np.uint8)}
    extra = {"args": arguments, "meta": meta | {"mean": np.ones(3), "classes": np.arange(3)}}
    torch.save({"model": WEIGHTS, **extra}, tmp_path / "w.pth")
    check(read_state_dict(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["w.pth", "w.pkl", "w.bin"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_nothing_is_executed(name: str, is_zip: bool, tmp_path: Path) -> None:
    content = {"model": WEIGHTS, "x": Malicious(tmp_path / "trace")}
    if is_zip:
        torch.save(content, tmp_path / name)
    else:
        content["model"] = {key: tensor.numpy() for key, tensor in WEIGHTS.items()}
        (tmp_path / name).write_bytes(pickle.dumps(content))
    reason = r"would run code \(\w+\.mkdir\)"
    with pytest.raises(ValueError, match=rf"{name} cannot be loaded as weights: .*{reason}"):
        read_state_dict(tmp_path / name)
    assert not (tmp_path / "trace").exists()


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    array = np.array([Malicious(tmp_path / "trace")], dtype=object)
    np.savez(tmp_path / "w.npz", array)
    with pytest.raises(ValueError, match=r"w\.npz cannot be loaded as weights: .*pickle"):
        read_state_dict(tmp_path / "w.npz")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("suffix", ["pth", "npz", "safetensors", "pkl"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", None])
def test_no_checkpoint(suffix: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / f"w.{suffix}"
    if content is None:  # cut off
        test_every_kind_of_file(tmp_path)
        path.write_bytes(path.read_bytes()[:-60])
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"w\.{suffix} cannot be loaded as weights: \S"):
        read_state_dict(path)


def test_an_old_file_that_was_changed_on_the_way(tmp_path: Path) -> None:
    """A storage is not the one that the tensors use."""
    path = tmp_path / "w.pth"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    key = str(WEIGHTS["a.bias"].untyped_storage()._cdata).encode()
    assert content.count(key) == 2
    path.write_bytes(content[::-1].replace(key[::-1], b"9" * len(key), 1)[::-1])
    with pytest.raises(ValueError, match=r"w\.pth cannot be loaded as weights: it lists storages"):
        read_state_dict(path)


def test_a_download_that_was_cut_off_says_so(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"w\.pth cannot .* it is cut off: the end of the archive"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["a" * 100_000, "a\ud800", "a\nb", "\x1b[2J"])
def test_names_that_no_terminal_can_show_are_refused(name: str, tmp_path: Path) -> None:
    torch.save({**WEIGHTS, name: torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"a name that no model has, of \d+ characters") as refused:
        read_state_dict(tmp_path / "w.pth")
    assert len(str(refused.value)) < 1000
    assert str(refused.value).isascii()


def test_the_reason_says_more_than_a_number(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"hello world this is a page")  # a KeyError of 101
    with pytest.raises(ValueError, match=r"it is damaged, or not a checkpoint \(KeyError: 101\)"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"meta": {"epoch": 3}, "state_dict": {}}, "no tensors"),
        ([1, 2], "dict of tensors, got list"),
        ({"module.a": torch.ones(1), "a": torch.ones(1)}, "two of its entries are called a"),
    ],
)
def test_content_without_weights(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"w\.pth cannot .*{message}"):
        read_state_dict(tmp_path / "w.pth")


def test_an_archive_of_a_checkpoint(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "model.pth.tar")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.write(tmp_path / "model.pth.tar", "model.pth.tar")
    with pytest.raises(ValueError, match=r"w\.zip .* archive, unpack model\.pth\.tar"):
        read_state_dict(tmp_path / "w.zip")


class Crafted:
    """Saved as a call that stock PyTorch makes where NumPy's classes are allowed."""

    def __reduce__(self) -> tuple[object, ...]:
        # An array of objects over bytes, which are taken for addresses.
        return np.ndarray, ((1,), np.dtype("O"), b"A" * 8)


def test_an_array_of_objects_over_bytes(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "x": Crafted(), "y": [Crafted()]}, tmp_path / "w.pth")
    check(read_state_dict(tmp_path / "w.pth"))
    found = read_checkpoint_file(tmp_path / "w.pth")
    assert isinstance(found["x"], Unread)
    assert repr(found["y"]) == "[Unread(kind='numpy.ndarray', is_tensor=False)]"


def test_a_dict_that_contains_itself() -> None:
    content: dict[str, object] = {}
    content["model"] = {"state_dict": content}
    with pytest.raises(ValueError, match="it contains itself"):
        unwrap_state_dict(content)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(2).to_sparse(), "a sparse tensor"),
        (torch.eye(2).to_sparse_csr(), "a sparse tensor"),
        (torch.empty(2, device="meta"), "a tensor without values"),
        (torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8), "a quantised tensor"),
        (torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "a nested tensor"),
    ],
)
def test_weights_that_are_not_dense(tensor: Tensor, kind: str, tmp_path: Path) -> None:
    """Not left out without a word; beside the weights they do not matter."""
    torch.save({"model": WEIGHTS | {"c": tensor}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"c is {kind}"):
        read_state_dict(tmp_path / "w.pth")
    torch.save({"model": WEIGHTS, "optimizer": {"c": tensor}}, tmp_path / "w.pth")
    check(read_state_dict(tmp_path / "w.pth"))


def test_names_that_become_equal_as_text(tmp_path: Path) -> None:
    torch.save({1: torch.ones(1), "1": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="two of its entries are called 1"):
        read_state_dict(tmp_path / "w.pth")


def write_npz(path: Path, members: list[tuple[str, bytes]], **arguments: int) -> Path:
    with zipfile.ZipFile(path, "w", **arguments) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def npy(shape: object = (2,), dtype: str = "<f4", data: bytes = b"\0" * 8) -> bytes:
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(shape=(2**50,)), r"a should have the shape \(1125899906842624,\), but there are"),
        (npy(shape=(2**50, 0, 2**50)), "damaged|shape|too big|array"),
        (npy(shape=(-1,)), "a should have the shape"),
        (npy(dtype="|O"), "a is an array of object, not of numbers"),
        (npy(dtype="|V4"), "not of numbers"),
        (npy(dtype="(9999999,)<f4"), "not of numbers"),
        (npy()[:-4], "should have the shape|damaged|cut|EOF|size"),
        (b"no array", "magic"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "header|parenthes|size|Header"),
    ],
)
def test_arrays_that_numpy_does_not_write(content: bytes, message: str, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "w.npz", [("a.npy", content)])
    with pytest.raises(ValueError, match=rf"w\.npz cannot be loaded as weights: .*({message})"):
        read_state_dict(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_of_arrays_that_numpy_does_not_write(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "w.npz", [("a.npy", npy()), ("a.npy", npy())])
    with pytest.raises(ValueError, match="two of its entries are called a"):
        read_state_dict(path)
    path = write_npz(tmp_path / "w.npz", [("a.npy", npy())], compression=zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match="compressed in a way that NumPy does not use"):
        read_state_dict(path)
    zeros = npy(shape=(2**27,), data=bytes(2**29))
    path = write_npz(tmp_path / "w.npz", [("a.npy", zeros)], compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"unpacks to 536\d+ bytes, over 4 times its own size"):
        read_state_dict(path)


def test_arrays_of_other_machines(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=">f4"), "b": np.asfortranarray(np.ones((2, 3), ">i8"))}
    np.savez_compressed(tmp_path / "w.npz", **arrays)
    found = read_state_dict(tmp_path / "w.npz")
    assert found["a"].tolist() == [0, 1, 2, 3, 4, 5]
    assert found["b"].tolist() == [[1] * 3] * 2


@pytest.mark.parametrize("suffix", ["pth", "npz", "safetensors", "pkl"])
def test_a_name_that_is_too_long(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be reached: File name too long"):
        read_state_dict(tmp_path / f"{'x' * 300}.{suffix}")
    with pytest.raises(ValueError, match="cannot be reached: File name too long"):
        read_checkpoint_file(tmp_path / f"{'x' * 300}.{suffix}")


def test_a_whole_training_state(tmp_path: Path) -> None:
    content = {"model": WEIGHTS, "iteration": 7, "best": {"value": 0.5}, "args": None}
    torch.save(content, tmp_path / "w.pth")
    found = read_checkpoint_file(tmp_path / "w.pth")
    check(found.pop("model"))
    assert found == {"iteration": 7, "best": {"value": 0.5}, "args": None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"nothing", "cannot be loaded: "),
        ([1], "a dict with names as keys"),
        ({1: 2}, "a dict with names as keys"),
        ({"x": os.mkdir}, r"would run code \(\w+\.mkdir\)"),
    ],
)
def test_no_training_state(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=rf"w\.pth .*{message}"):
        read_checkpoint_file(path)
    torch.save({"a": torch.ones(9)}, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"w\.pth cannot be loaded: \S"):
        read_checkpoint_file(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    faults = {tmp_path / "nowhere.pth": "do not exist", tmp_path: "are a folder, not a file"}
    for path, fault in faults.items():
        with pytest.raises(ValueError, match=fault):
            read_state_dict(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_pickles_of_detectron2(protocol: int, tmp_path: Path) -> None:
    """Of any name: what it is follows from its content."""
    model = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}
    content = {"model": model, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    for name in ("w.pkl", "w.pth"):
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
        check(read_state_dict(tmp_path / name))


@pytest.mark.parametrize(
    "content",
    [np.ones((2, 2)), [np.ones(2)], {"model": "text"}, {}, 7, "text", None],
)
def test_other_pickles(content: object, tmp_path: Path) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"w\.pkl cannot be loaded as weights: \S"):
        read_state_dict(path)


def test_a_pickle_that_refers_to_storages(tmp_path: Path) -> None:
    """Whose content would have to follow, as only the old format of PyTorch has it."""
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    file = io.BytesIO((tmp_path / "old.pth").read_bytes())
    for _ in range(3):
        list(pickletools.genops(file))
    (tmp_path / "w.pkl").write_bytes(file.read())
    with pytest.raises(ValueError, match="neither a pickled dict of arrays nor a file of torch"):
        read_state_dict(tmp_path / "w.pkl")
