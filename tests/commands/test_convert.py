import re
from pathlib import Path

import pytest
import timm
import torch
from detectron2.config import LazyConfig, instantiate
from torch import Tensor
from torch.distributed import checkpoint as dcp

from vitadapter.checkpoint.loading import check_plan, plan_load
from vitadapter.checkpoint.reading import read_state_dict
from vitadapter.checkpoint.sharded import named_tensors, without_tensors
from vitadapter.commands import convert
from vitadapter.modeling.backbone import ViT, ViTBaseline

SIZE = {"embed_dim": 32, "depth": 4, "num_heads": 2}


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    model = timm.create_model("vit_small_patch14_dinov2", img_size=56, **SIZE)
    torch.save({"model": model.state_dict()}, tmp_path / "dinov2.pth")
    return tmp_path / "dinov2.pth", model.state_dict()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("family", ["auto", "dinov2"])
def test_what_it_writes_loads(
    suffix: str, family: str, source: tuple[Path, dict[str, Tensor]], capsys
) -> None:
    path, state = source
    output = path.with_name(f"out.{suffix}")
    assert convert.main([str(path), str(output), "--family", family]) == 0
    printed = capsys.readouterr().out
    assert "blocks.#.ls1.gamma -> blocks.#.gamma1 (4)" in printed
    assert sorted(p.name for p in path.parent.iterdir()) == ["dinov2.pth", f"out.{suffix}"]
    converted = read_state_dict(output)
    assert torch.equal(converted["blocks.2.gamma1"], state["blocks.2.ls1.gamma"])
    model = ViTBaseline(ViT(**SIZE, pretrain_img_size=64, layer_scale_init=1.0))
    plan = plan_load(model, converted, str(output))
    check_plan(plan, model)
    assert plan.report.net_share == 1.0


def test_an_output_is_not_overwritten_by_chance(
    source: tuple[Path, dict[str, Tensor]], capsys
) -> None:
    path, _ = source
    output = path.with_name("out.pth")
    output.write_text("precious")
    with pytest.raises(SystemExit):
        convert.main([str(path), str(output)])
    assert "exists: add --overwrite" in capsys.readouterr().err
    assert output.read_text() == "precious"
    assert convert.main([str(path), str(output), "--overwrite"]) == 0
    assert "patch_embed.proj.weight" in read_state_dict(output)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("out.zip", "must end in .pth or .safetensors"),
        ("no/out.pth", "folder of .* does not"),
        ("folder.pth", "must be a file, but .* is a folder"),
    ],
)
def test_bad_outputs(output: str, message: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(SystemExit):
        convert.main(["w.pth", str(tmp_path / output), "--overwrite"])
    assert re.search(message, capsys.readouterr().err)


def test_only_a_model_with_lora_is_merged(
    source: tuple[Path, dict[str, Tensor]], tmp_path: Path, capsys
) -> None:
    path, _ = source
    arguments = [str(path), str(tmp_path / "out.pth"), "--merge-lora"]
    with pytest.raises(SystemExit):
        convert.main(arguments)
    assert "--merge-lora needs the config" in capsys.readouterr().err
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(model='L(ViTAdapter)(net=_nets["vit"], deform_num_heads=2)'))
    weights = instantiate(LazyConfig.load(str(config)).model).state_dict()
    torch.save({"model": weights}, path)
    arguments += ["--config-file", str(config)]
    assert convert.main(arguments) == 1
    assert "--merge-lora needs a model with LoRA" in capsys.readouterr().err
    lora = "model.net.tuning=[{_target_: vitadapter.modeling.backbone.LoRA, rank: 2}]"
    assert convert.main([*arguments, lora]) == 1  # the updates are not in the file
    assert "is of another model: 16 of the" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("family", ["auto", "dinov2"])
def test_a_vit_inside_another_model(family: str, source: tuple[Path, dict[str, Tensor]]) -> None:
    path, state = source
    torch.save({f"teacher.backbone.{name}": t for name, t in state.items()}, path)
    assert convert.main([str(path), str(path.with_name("out.pth")), "--family", family]) == 0
    converted = read_state_dict(path.with_name("out.pth"))
    assert torch.equal(converted["blocks.1.gamma2"], state["blocks.1.ls2.gamma"])


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_full_disk_is_an_error_line(
    suffix: str,
    source: tuple[Path, dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    capsys,
) -> None:
    def write(tensors: object, path: Path) -> None:
        Path(path).write_bytes(b"begun")
        raise OSError("No space left on device")

    monkeypatch.setattr(convert.torch, "save", write)
    monkeypatch.setattr(convert, "save_file", write)
    path, _ = source
    assert convert.main([str(path), str(path.with_name(f"out.{suffix}"))]) == 1
    assert "cannot be written: No space left" in capsys.readouterr().err
    assert [p.name for p in path.parent.iterdir()] == ["dinov2.pth"]


@pytest.mark.parametrize(
    ("content", "family", "message"),
    [
        (None, "auto", "do not exist"),
        ({"conv1.weight": torch.ones(1)}, "auto", "no known family"),
        ({"conv1.weight": torch.ones(1)}, "augreg", "has embedding/kernel"),
        ({"net.a": torch.tensor([1.0, torch.inf])}, "auto", "infinite: net.a (1 of 2)"),
    ],
)
def test_bad_inputs(content: object, family: str, message: str, tmp_path: Path, capsys) -> None:
    if content is not None:
        torch.save(content, tmp_path / "w.pth")
    output = tmp_path / "out.pth"
    assert convert.main([str(tmp_path / "w.pth"), str(output), "--family", family]) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()


CONFIG = """
from detectron2.config import LazyCall as L
from torch import nn

from vitadapter.modeling.backbone import TimmViT, ViT, ViTAdapter

_size = dict(embed_dim=32, depth=4, num_heads=2, pretrain_img_size=64)
_nets = dict(
    vit=L(ViT)(**_size, layer_scale_init=1.0),
    timm=L(TimmViT)(model_name="vit_small_patch14_dinov2", **_size),
)
model = {model}
"""
ADAPTER = "L(ViTAdapter)(net=_nets[{!r}], conv_dim=8, deform_num_heads=2)"


def write_config(folder: Path, model: str) -> str:
    path = folder / "config.py"
    path.write_text(CONFIG.format(model=model))
    return str(path)


@pytest.mark.parametrize(("net", "scale"), [("vit", "gamma1"), ("timm", "ls1.gamma")])
def test_for_a_config_the_fitting_converter_is_taken(
    net: str, scale: str, source: tuple[Path, dict[str, Tensor]], capsys
) -> None:
    path, state = source
    config = write_config(path.parent, ADAPTER.format(net))
    output = path.with_name("out.pth")
    assert convert.main([str(path), str(output), "--config-file", config]) == 0
    printed = capsys.readouterr().out
    assert "100.0% of the net's parameters" in printed
    assert "(32, 3, 14, 14) to (32, 3, 16, 16), bilinear" in printed
    assert f"names are those of the model, written to {output}" in printed
    converted = torch.load(output, weights_only=True)["model"]
    assert torch.equal(converted[f"net.blocks.2.{scale}"], state["blocks.2.ls1.gamma"])
    assert converted["net.patch_embed.proj.weight"].shape == (32, 3, 16, 16)


def test_overrides_change_the_model(source: tuple[Path, dict[str, Tensor]]) -> None:
    path, _ = source
    config = write_config(path.parent, ADAPTER.format("vit"))
    command = ["--config-file", config, str(path), str(path.with_name("out.safetensors"))]
    assert convert.main([*command, "model.net.pretrain_img_size=96"]) == 0
    converted = read_state_dict(path.with_name("out.safetensors"))
    assert converted["net.pos_embed"].shape == (1, 37, 32)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("L(nn.Linear)(in_features=2, out_features=2)", [], "must have a ViTAdapter, .* a Linear"),
        ("3", [], "config.py must define model, got None"),
        (ADAPTER.format("vit"), ["--family", "augreg"], "cannot be loaded: .* has embedding/kern"),
        (
            ADAPTER.format("vit"),
            ["model.net.embed_dim=48"],
            "has none of .*the wrong width",
        ),
        (ADAPTER.format("vit"), ["model.net.depth=8"], "has 59.9% of the net's .* are missing"),
        (ADAPTER.format("vit"), ["model.net.num_heads=5"], "model.net: num_heads must divide"),
        (ADAPTER.format("vit"), ["model.nett=5"], "no key 'model.nett'"),
        (ADAPTER.format("vit") + ")", [], "config.py cannot be read: "),
    ],
)
def test_bad_configs(
    model: str,
    arguments: list[str],
    message: str,
    source: tuple[Path, dict[str, Tensor]],
    capsys,
) -> None:
    path, _ = source
    config = write_config(path.parent, model)
    output = path.with_name("out.pth")
    assert convert.main([str(path), str(output), "--config-file", config, *arguments]) == 1
    error = capsys.readouterr().err
    assert re.search(f"^error: .*{message}", error)
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "no.py"], "--config-file no.py does not exist or is a folder"),
        (["--config-file", "."], "--config-file . does not exist or is a folder"),
        (["model.net.depth=2"], "model.net.depth=2 would change a config: add --config-file"),
    ],
)
def test_bad_commands(arguments: list[str], message: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        convert.main(["w.pth", str(tmp_path / "out.pth"), *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_sharded_checkpoint_becomes_a_file(suffix: str, tmp_path: Path) -> None:
    weights = {"backbone.net.weight": torch.arange(3.0), "head.bias": torch.ones(2)}
    content = {"model": weights, "trainer": {"exp_avg": torch.zeros(3)}, "config": "a: 1"}
    folder = tmp_path / "model_final.dcp"
    dcp.save(
        dict(named_tensors(content)), storage_writer=dcp.FileSystemWriter(folder), no_dist=True
    )
    torch.save(without_tensors(content), folder / "state.pth")
    output = tmp_path / f"out.{suffix}"
    assert convert.main([str(folder), str(output)]) == 0
    if suffix == "pth":
        assert str(torch.load(output, weights_only=True)) == str(content)
    else:
        assert str(read_state_dict(output)) == str(weights)
