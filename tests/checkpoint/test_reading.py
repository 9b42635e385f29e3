import argparse
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitadapter.checkpoint.reading import read_state_dict, unwrap_state_dict
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
        (tmp_path / name).write_bytes(pickle.dumps(content))
    reason = r"would run code \((\w+\.mkdir|torch\.storage\._load_from_bytes)\)"
    if not is_zip and name == "w.pkl":
        reason = "is a program that"
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
    with pytest.raises(ValueError, match=r"w\.pth cannot be loaded as weights: it lists other"):
        read_state_dict(path)


def test_the_reason_says_more_than_a_number(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"hello world this is a page")  # a KeyError of 101
    with pytest.raises(ValueError, match=r"it is damaged, or no such file \(KeyError: 101\)"):
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


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(ValueError, match="do not exist"):
            read_state_dict(path)
