"""Checkpoints that are folders, written by PyTorch's own functions, whole and damaged."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp
from training_samples import Program

from vitadapter.checkpoint.reading import read_checkpoint_file, read_state_dict
from vitadapter.checkpoint.sharded import fill_tensors, read_tensors, without_tensors

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}
CONTENT = {
    "model": WEIGHTS,
    "trainer": {"state": {0: {"exp_avg": torch.full((3,), 0.5), "step": torch.tensor(2.0)}}},
    "groups": [{"lr": 0.5, "betas": (0.9, torch.tensor(0.99))}],
    "iteration": 3,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model_0000003.dcp"
    named = {f"model.{name}": tensor for name, tensor in WEIGHTS.items()}
    named["trainer.state.0.exp_avg"] = CONTENT["trainer"]["state"][0]["exp_avg"]
    named["trainer.state.0.step"] = CONTENT["trainer"]["state"][0]["step"]
    named["groups.0.betas.1"] = CONTENT["groups"][0]["betas"][1]
    dcp.save(named, storage_writer=dcp.FileSystemWriter(path), no_dist=True)
    torch.save(without_tensors(CONTENT), path / "state.pth")
    return path


def test_it_is_read_as_it_was_saved(folder: Path) -> None:
    content = read_checkpoint_file(folder)
    assert str(content) == str(CONTENT)
    weights = read_state_dict(folder)
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in WEIGHTS.items())
    assert list(read_tensors(folder, lambda name: name == "model.b")) == ["model.b"]


def test_what_is_no_tensor_is_read_without_the_parts(folder: Path) -> None:
    (folder / "__0_0.distcp").unlink()
    content = read_checkpoint_file(folder, is_mapped=True)
    assert content["iteration"] == 3
    assert content["groups"][0]["betas"] == (0.9, None)
    assert fill_tensors(content, {"model.b": WEIGHTS["b"]})["model"]["b"] is WEIGHTS["b"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def overwrite(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def names_another_file(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"__0_0.distcp", b"../../../etc"))


def asks_for_more(path: Path) -> None:
    metadata = pickle.loads(path.read_bytes())
    entry = metadata.state_dict_metadata["model.a.weight"]
    entry.size = torch.Size([2**20, 2**10])
    path.write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("__0_0.distcp", Path.unlink, "1 of its 1 files are missing: __0_0.distcp"),
        ("__0_0.distcp", cut, r"__0_0\.distcp is cut off: \d+ bytes are needed, it has \d+"),
        ("__0_0.distcp", overwrite, "cannot be loaded"),
        ("state.pth", Path.unlink, r"state\.pth do not exist"),
        ("state.pth", cut, "cannot be loaded: it is cut off"),
        (".metadata", Path.unlink, r"it has no \.metadata: it was never completed"),
        (".metadata", cut, "metadata is damaged"),
        (".metadata", names_another_file, "names a file outside of it"),
        (".metadata", asks_for_more, "its tensors are larger than its files"),
    ],
)
def test_damage_is_named(folder: Path, name: str, damage, message: str) -> None:
    damage(folder / name)
    with pytest.raises(ValueError, match=message) as caught:
        read_checkpoint_file(folder)
    assert str(folder) in str(caught.value)


def test_nothing_in_it_is_run(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "created"
    (folder / ".metadata").write_bytes(pickle.dumps(Program(target)))
    with pytest.raises(ValueError, match="which is none of its parts"):
        read_checkpoint_file(folder)
    assert not target.exists()


def test_a_folder_of_another_name_is_no_checkpoint(folder: Path) -> None:
    other = folder.with_name("model")
    shutil.move(folder, other)
    with pytest.raises(ValueError, match="are a folder, not a file"):
        read_state_dict(other)
