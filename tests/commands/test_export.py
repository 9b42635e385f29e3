"""`vitadapter export`: what it writes computes as the model does, in batches of any size."""

from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig

from vitadapter.commands import export
from vitadapter.modeling.backbone import LoRA, VisualPrompts, ViT, ViTBaseline


@pytest.fixture
def weights(cfg: DictConfig, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "weights.pth"
    torch.save({"model": instantiate(cfg.model).state_dict()}, path)
    return path


def test_what_it_writes_equals_the_model(
    cfg: DictConfig, tiny_config: Path, weights: Path, tmp_path: Path, capsys
) -> None:
    output = tmp_path / "backbone.pt2"
    arguments = [str(tiny_config), str(output), "--size", "64", "96", "--weights", str(weights)]
    arguments += ["--overrides", "train.device=cpu"]
    assert export.main(arguments) == 0
    assert f"{output}: images (B, 3, 64, 96)" in capsys.readouterr().out
    model = instantiate(cfg.model).eval()
    model.load_state_dict(torch.load(weights, weights_only=True)["model"])
    program = torch.export.load(output).module()
    for batch in (1, 5):
        images = torch.randn(batch, 3, 64, 96)
        with torch.no_grad():
            expected, got = model.backbone(images), program(images)
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(SystemExit) as stopped:
        export.main(arguments)
    assert stopped.value.code == 2
    assert "exists: add --overwrite" in capsys.readouterr().err


def test_a_program_of_other_weights_is_refused(cfg: DictConfig) -> None:
    first, second = (instantiate(cfg.model).eval().backbone for _ in range(2))
    program = export.export_backbone(first, (64, 64))
    assert export.check_equal(program, first, (64, 64)) < 1e-4
    with pytest.raises(ValueError, match=r"must equal the model within 0\.0001, got"):
        export.check_equal(program, second, (64, 64))


def test_a_tuned_net_is_exported_merged() -> None:
    tuning = [LoRA(2), VisualPrompts(3)]
    net = ViT(embed_dim=32, depth=4, num_heads=2, tuning=tuning)
    for name, parameter in net.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter)
    backbone = ViTBaseline(net).eval()
    program = export.export_backbone(backbone, (64, 64))
    assert export.check_equal(program, backbone, (64, 64)) < 1e-4
    assert "net.prompts" in program.state_dict
    assert not any("lora" in name for name in program.state_dict)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["backbone.pth", "--size", "64", "64"], "must end in .pt2"),
        (["backbone.pt2", "--size", "0", "64"], "--size must be positive, got 0 64"),
        (["nowhere/backbone.pt2", "--size", "64", "64"], "does not exist"),
        (["backbone.pt2"], "--size"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, tiny_config: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        export.main([str(tiny_config), *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_weights_that_are_not_there(tiny_config: Path, tmp_path: Path, capsys) -> None:
    arguments = [str(tiny_config), str(tmp_path / "a.pt2"), "--size", "64", "64"]
    assert export.main(arguments) == 1
    assert "--weights FILE takes your own" in capsys.readouterr().err
    assert export.main([*arguments, "--weights", "nowhere.pth"]) == 1
    assert "nowhere.pth do not exist" in capsys.readouterr().err
    assert list(tmp_path.glob("*.pt2*")) == []
