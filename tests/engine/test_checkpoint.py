import pickle
from pathlib import Path

import pytest
import timm
import torch
from detectron2.config import instantiate
from training_samples import Program

from vitadapter.checkpoint import export_official
from vitadapter.checkpoint.official.layouts import MASK_RCNN
from vitadapter.engine import checkpoint as checkpoint_module
from vitadapter.engine.checkpoint import (
    AtomicCheckpointer,
    check_weights_exist,
    load_init_checkpoint,
)
from vitadapter.model_zoo import get_config


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


def poison(tensor: torch.Tensor, value: float) -> None:
    with torch.no_grad():
        tensor.view(-1)[-1] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["weight", "running_var", "average", "optimizer"])
def test_nothing_infinite_or_nan_is_written(tmp_path: Path, part: str, value: float) -> None:
    model, average = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    saver = AtomicCheckpointer(model, str(tmp_path), optimizer=optimizer, model_ema=average)
    saver.save("model_0000001", iteration=1)
    places = {
        "weight": (model.weight, "model.weight"),
        "running_var": (model.running_var, "model.running_var"),
        "average": (average.bias, "model_ema.bias"),
        "optimizer": (optimizer.state[model.bias]["exp_avg_sq"], "optimizer.state.1.exp_avg_sq"),
    }
    tensor, name = places[part]
    poison(tensor, value)
    before = sorted(tmp_path.iterdir())
    for file in ("model_0000002", "model_final"):
        with pytest.raises(FloatingPointError, match=rf"^{name} is infinite or NaN: .*{file}\.pth"):
            saver.save(file, iteration=2)
    if part != "optimizer":
        with pytest.raises(FloatingPointError, match=r"model_best\.pth is not written"):
            saver.save_weights("model_best", average if part == "average" else model)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert saver.saved_iteration == 1


def test_old_checkpoints_are_removed_those_of_earlier_starts_too(tmp_path: Path) -> None:
    for start in range(2):
        saver = make_checkpointer(tmp_path, start)
        saver.max_to_keep = 3
        saver.save_weights("model_best", saver.model)
        (tmp_path / "mine.pth").touch()
        for iteration in range(4 * start, 4 * start + 4):
            saver.save(f"model_{iteration:07d}", iteration=iteration)
        saver.save("model_final", iteration=iteration)
    kept = {"mine", "model_best", "model_final", *(f"model_000000{i}" for i in (5, 6, 7))}
    assert {path.stem for path in tmp_path.glob("*.pth")} == kept
    # Gone back to: its successors are newer than what was left behind.
    for iteration in (2, 3):
        saver.save(f"model_{iteration:07d}", iteration=iteration)
    kept = {"mine", "model_best", "model_final", *(f"model_000000{i}" for i in (7, 2, 3))}
    assert {path.stem for path in tmp_path.glob("*.pth")} == kept
    saver.max_to_keep = 1
    saver.save("model_0000004", iteration=4)
    assert {path.stem for path in tmp_path.glob("model_0*.pth")} == {"model_0000004"}


@pytest.mark.parametrize("name", ["model.pkl", "model.pth", "model.pyth"])
def test_no_checkpoint_is_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"model": Program(tmp_path / "executed")}))
    loader = make_checkpointer(tmp_path, 1.0)
    with pytest.raises(ValueError, match=rf"{name} cannot be loaded"):
        loader.load(str(tmp_path / name))
    assert not (tmp_path / "executed").exists()


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


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    faults = {
        "x" * 300: "cannot be reached: File name too long",
        str(tmp_path): "are a folder, not a file",
        f"{tmp_path}/none.pth?matching_heuristics=True": "do not exist",
        f"{tmp_path}/empty.pth": "the file is empty",
    }
    for path, fault in faults.items():
        with pytest.raises(ValueError, match=f"{fault}: set train.init_checkpoint"):
            check_weights_exist(path)


@pytest.mark.parametrize("complete", [False, True])
def test_weights_that_are_not_finite(complete: bool, tmp_path: Path) -> None:
    """Neither training nor evaluation and prediction, which want them complete, load them."""
    loader = make_checkpointer(tmp_path, 0.0)
    for value, dtype in ((torch.nan, torch.float32), (1e300, torch.float64)):
        weights = {"weight": torch.full((1, 1), value, dtype=dtype), "bias": torch.zeros(1)}
        torch.save(weights, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=r"w\.pth .* NaN or infinite.*: weight \(1 of 1\)"):
            load_init_checkpoint(loader, f"{tmp_path}/w.pth", complete=complete)
    assert loader.model.weight.item() == 0.0


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


def make_detector() -> torch.nn.Module:
    cfg = get_config("common/models/mask_rcnn_vit_adapter.py").model
    cfg.backbone.bottom_up.update(conv_dim=8, deform_num_heads=2)
    cfg.backbone.bottom_up.net.update(embed_dim=32, depth=4, num_heads=2, window_size=0)
    cfg.backbone.bottom_up.net.update(window_block_indexes=[], pretrain_img_size=64)
    cfg.roi_heads.num_classes = 3
    cfg.roi_heads.box_head.fc_dims = [16, 16]
    cfg.roi_heads.box_predictor.input_shape.channels = 16
    return instantiate(cfg)


def test_a_whole_official_detector(tmp_path: Path) -> None:
    """As `--eval-only` and the demo load it: every weight, under mmdet's names, in mmcv's file."""
    source, model = make_detector(), make_detector()
    official = export_official(source.state_dict(), MASK_RCNN)
    path = tmp_path / "official.pth"
    torch.save({"meta": {"CLASSES": ("a", "b", "c")}, "state_dict": official}, path)
    load_init_checkpoint(AtomicCheckpointer(model), str(path), complete=True)
    expected = source.state_dict()
    assert all(torch.equal(expected[name], t) for name, t in model.state_dict().items())
    del official["rpn_head.rpn_reg.bias"]
    torch.save({"state_dict": official}, path)
    with pytest.raises(
        ValueError, match=r"official\.pth is of another model: 1 of .*anchor_deltas"
    ):
        load_init_checkpoint(AtomicCheckpointer(make_detector()), str(path), complete=True)


def test_a_pre_trained_vit_is_reported(tmp_path: Path, caplog) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=32, depth=4, num_heads=2)
    path = tmp_path / "vit.pth"
    torch.save(vit.state_dict(), path)
    detector = make_detector()
    with caplog.at_level("INFO", "vitadapter"):
        load_init_checkpoint(AtomicCheckpointer(detector, str(tmp_path)), str(path))
    assert "vit.pth (timm_vit): 51 tensors loaded, 100.0%" in caplog.text
    net = detector.backbone.bottom_up.net
    assert torch.equal(net.blocks[3].mlp.fc2.weight, vit.blocks[3].mlp.fc2.weight)
    report = (tmp_path / "init_checkpoint_report.txt").read_text()
    assert "\nroi_heads.box_predictor.cls_score.weight: stays as initialised\n" in report


def test_part_of_a_vit_is_refused_unless_that_is_wanted(tmp_path: Path) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=32, depth=3, num_heads=2)
    path = str(tmp_path / "vit.pth")
    torch.save(vit.state_dict(), path)
    checkpointer = AtomicCheckpointer(make_detector())
    net = checkpointer.model.backbone.bottom_up.net
    before = net.blocks[0].mlp.fc1.weight.clone()
    with pytest.raises(ValueError, match=r"vit\.pth .* 90% are needed: .*init_allow_partial=True"):
        load_init_checkpoint(checkpointer, path)
    assert torch.equal(net.blocks[0].mlp.fc1.weight, before)
    load_init_checkpoint(checkpointer, path, allow_partial=True)
    assert torch.equal(net.blocks[0].mlp.fc1.weight, vit.blocks[0].mlp.fc1.weight)


def test_guessing_names_is_still_possible(tmp_path: Path) -> None:
    path = save_linear(tmp_path / "w.pth", weight=torch.full((1, 1), 7.0))
    model = torch.nn.ModuleDict({"x": torch.nn.Linear(1, 1)})
    checkpointer = AtomicCheckpointer(model)
    load_init_checkpoint(checkpointer, f"{path}?matching_heuristics=True")
    assert model["x"].weight.item() == 7.0
    with pytest.raises(ValueError, match=r"may end in \?matching_heuristics=True only"):
        load_init_checkpoint(checkpointer, f"{path}?heuristics=1")
