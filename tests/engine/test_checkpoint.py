from pathlib import Path

import pytest
import torch

from vitadapter.engine import checkpoint as checkpoint_module
from vitadapter.engine.checkpoint import (
    AtomicCheckpointer,
    check_weights_exist,
    load_init_checkpoint,
)


def make_checkpointer(folder: Path, value: float) -> AtomicCheckpointer:
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, value)
    return AtomicCheckpointer(model, str(folder))


def test_saves_what_detectron2_loads(tmp_path: Path) -> None:
    saver = make_checkpointer(tmp_path, 3.0)
    saver.save("model_0000004", iteration=4)
    assert saver.saved_iteration == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000004.pth"]
    loader = make_checkpointer(tmp_path, 0.0)
    assert loader.resume_or_load("")["iteration"] == 4
    assert loader.model.weight.item() == 3.0


def test_a_save_that_breaks_off_leaves_the_last_checkpoint_whole(
    tmp_path: Path, monkeypatch
) -> None:
    saver = make_checkpointer(tmp_path, 3.0)
    saver.save("model", iteration=1)

    def write_half(data: object, file: object) -> None:
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint_module.torch, "save", write_half)
    torch.nn.init.constant_(saver.model.weight, 5.0)
    with pytest.raises(OSError, match="no space"):
        saver.save("model", iteration=2)
    monkeypatch.undo()
    assert saver.saved_iteration == 1
    loader = make_checkpointer(tmp_path, 0.0)
    loader.resume_or_load("")
    assert loader.model.weight.item() == 3.0
    assert [Path(f).name for f in loader.get_all_checkpoint_files()] == ["model.pth"]
    saver.save("model", iteration=2)
    assert not list(tmp_path.glob("*partial*"))


def test_weights_of_several_forms(tmp_path: Path) -> None:
    checkpointer = make_checkpointer(tmp_path, 0.0)
    load_init_checkpoint(checkpointer, "")
    assert checkpointer.model.weight.item() == 0.0
    torch.save({"weight": torch.full((1, 1), 2.0)}, tmp_path / "bare.pth")
    load_init_checkpoint(checkpointer, str(tmp_path / "bare.pth"))
    assert checkpointer.model.weight.item() == 2.0
    check_weights_exist(f"{tmp_path}/bare.pth?matching_heuristics=True")
    check_weights_exist("https://host/weights.pth")


def test_bad_weights(tmp_path: Path) -> None:
    checkpointer = make_checkpointer(tmp_path, 0.0)
    with pytest.raises(ValueError, match=r"nowhere\.pth do not exist.*train\.init_checkpoint="):
        load_init_checkpoint(checkpointer, str(tmp_path / "nowhere.pth"))
    for content in (b"", b"text, not weights"):
        (tmp_path / "bad.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.pth cannot be loaded"):
            load_init_checkpoint(make_checkpointer(tmp_path, 0.0), str(tmp_path / "bad.pth"))


def save_linear(path: Path, **state: torch.Tensor) -> str:
    torch.save({"model": state}, path)
    return str(path)


def test_weights_of_another_model(tmp_path: Path, caplog) -> None:
    """`torch.nn.Linear(1, 1)` has a weight of shape (1, 1) and a bias of shape (1,)."""
    foreign = save_linear(tmp_path / "raw.pth", **{"blocks.0.attn.qkv.weight": torch.ones(3, 1)})
    message = r"raw\.pth has none of the 2 parameters.*blocks\.0\.attn\.qkv\.weight.*weight, bias"
    for complete in (False, True):
        with pytest.raises(ValueError, match=message):
            load_init_checkpoint(make_checkpointer(tmp_path, 0.0), foreign, complete=complete)

    partial = save_linear(tmp_path / "part.pth", weight=torch.ones(1, 1), bias=torch.ones(3))
    checkpointer = make_checkpointer(tmp_path, 0.0)
    with caplog.at_level("WARNING", "vitadapter"):
        load_init_checkpoint(checkpointer, partial)  # a new head
    assert "bias: (3,) in the file, (1,) here" in caplog.text
    assert checkpointer.model.weight.item() == 1.0
    with pytest.raises(
        ValueError, match=r"part\.pth .* 1 of the 2 .*: bias is \(3,\) in .*, \(1,\) here$"
    ):
        load_init_checkpoint(make_checkpointer(tmp_path, 0.0), partial, complete=True)


def test_shared_parameters_need_one_of_their_names(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    model[1].weight, model[1].bias = model[0].weight, model[0].bias
    state = {"1.weight": torch.full((1, 1), 4.0), "1.bias": torch.zeros(1)}
    path = save_linear(tmp_path / "shared.pth", **state)
    load_init_checkpoint(AtomicCheckpointer(model), path, complete=True)
    assert model[0].weight.item() == 4.0


def test_batch_statistics_are_weights_but_their_count_is_not(tmp_path: Path) -> None:
    state = torch.nn.BatchNorm2d(2).state_dict()
    del state["num_batches_tracked"]
    path = save_linear(tmp_path / "norm.pth", **state)
    load_init_checkpoint(AtomicCheckpointer(torch.nn.BatchNorm2d(2)), path, complete=True)
    del state["running_var"]
    path = save_linear(tmp_path / "norm.pth", **state)
    with pytest.raises(ValueError, match="running_var"):
        load_init_checkpoint(AtomicCheckpointer(torch.nn.BatchNorm2d(2)), path, complete=True)


def test_a_file_of_another_framework(tmp_path: Path) -> None:
    torch.save({"meta": {"epoch": 3}, "state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth cannot be loaded"):
        load_init_checkpoint(make_checkpointer(tmp_path, 0.0), str(tmp_path / "other.pth"))
