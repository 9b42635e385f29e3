"""Detectron2's own script and checkpointer with files of `scripts/convert_checkpoint.py`."""

import logging
import re
from pathlib import Path

import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_argument_parser
from tools import lazyconfig_train_net
from torch import Tensor, nn

from vitadapter.checkpoint import (
    LAYOUTS,
    OfficialLayout,
    export_official,
    resize_patch_kernel,
    resize_pos_embed,
)
from vitadapter.commands import convert as convert_checkpoint

NET = "backbone.bottom_up.net."

pytestmark = pytest.mark.usefixtures("restored_logging")

# Detectron2's ViTDet, the lines of the page for its users, and the rest of a config on tiny data.
VITDET = """
from pathlib import Path

import detectron2
from detectron2.config import LazyConfig
from omegaconf import OmegaConf
from project_configs import shrink

_zoo = Path(detectron2.__file__).parent / "model_zoo" / "configs"
model = LazyConfig.load(str(_zoo / "common" / "models" / "mask_rcnn_vitdet.py")).model
{readme}
model = shrink(OmegaConf.create(dict(model=model))).model
model.backbone.bottom_up.net.update(
    img_size=64, pretrain_img_size=64, residual_block_indexes=[7], use_act_checkpoint=True
)
model.backbone.square_pad = 64
model.roi_heads.num_classes = 2

_tiny = LazyConfig.load("{tiny}")
dataset, dataloader, optimizer = _tiny.dataset, _tiny.dataloader, _tiny.optimizer
lr_multiplier, train = _tiny.lr_multiplier, _tiny.train
"""


@pytest.fixture
def vitdet_config(tiny_config: Path, repository: Path, tmp_path: Path) -> Path:
    """A ViTDet of Detectron2's that has got the adapter as the page for its users says."""
    page = repository / "projects" / "ViTAdapter" / "docs" / "coming_from" / "vitdet.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (readme,) = (block for block in blocks if "L(ViTAdapter)(net=model.backbone.net" in block)
    path = tmp_path / "vitdet_adapter.py"
    path.write_text(VITDET.format(readme=readme, tiny=tiny_config))
    return path


# An experiment of ours.
EXPERIMENT = """
from project_configs import PROJECT, shrink

from vitadapter.model_zoo import load_experiment

_cfg = shrink(load_experiment(PROJECT / "configs" / "COCO" / "mask_rcnn_vit_adapter_s_deit_3x.py"))
dataset, model, train = _cfg.dataset, _cfg.model, _cfg.train
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """A Mask R-CNN with ViT-Adapter, cut down."""
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT)
    return path


def build(config: Path, *overrides: str) -> nn.Module:
    """The model of a config, without a weight that could be in place by chance."""
    model = instantiate(LazyConfig.apply_overrides(LazyConfig.load(str(config)), overrides).model)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model


def convert(source: Path, config: Path, *overrides: str) -> Path:
    output = source.with_name("converted.pth")
    command = [str(source), str(output), "--config-file", str(config), *overrides]
    assert convert_checkpoint.main(command) == 0
    return output


def loaded(config: Path, path: Path, caplog: pytest.LogCaptureFixture) -> dict[str, Tensor]:
    """A model after Detectron2's checkpointer, for which everything in the file has a place."""
    model = build(config)
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(model).load(str(path))
    assert "not found in the model" not in caplog.text
    assert "incompatible shapes" not in caplog.text
    return model.state_dict()


def test_a_vitdet_trains_with_the_adapter_from_a_converted_file(
    vitdet_config: Path,
    overrides: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A pre-trained MAE with other patches and another grid."""
    size = dict(embed_dim=32, depth=8, num_heads=2, patch_size=14, img_size=112)
    mae = timm.create_model("vit_base_patch16_224", **size).state_dict()
    torch.save({"model": mae | {"decoder_embed.bias": torch.ones(1)}}, tmp_path / "mae.pth")
    converted = convert(tmp_path / "mae.pth", vitdet_config)
    state = loaded(vitdet_config, converted, caplog)
    net = {n.removeprefix(NET): t for n, t in state.items() if n.startswith(NET)}
    assert len(net) == 3 + 8 * 14 + 9  # with relative positions, and with one residual block
    for name, tensor in net.items():
        if name == "pos_embed":
            expected = resize_pos_embed(mae[name], 1, 17, 1)
        elif name == "patch_embed.proj.weight":
            expected = resize_patch_kernel(mae[name], (16, 16))
        elif "rel_pos" in name or ".residual." in name:  # which MAE lacks
            continue
        else:
            expected = mae[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0, msg=name)

    # It trains from the file: without a learning rate its weights are the result.
    settings = ["train.max_iter=2", "optimizer.lr=0", f"train.init_checkpoint={converted}"]
    arguments = ["--config-file", str(vitdet_config), *overrides, *settings]
    lazyconfig_train_net.main(default_argument_parser().parse_args(arguments))
    result = torch.load(tmp_path / "output" / "model_final.pth", weights_only=False)
    assert result["iteration"] == 1
    for name in torch.load(converted, weights_only=True)["model"]:
        assert torch.equal(result["model"][name], state[name]), name


@pytest.mark.parametrize("layout", [None, *(o for o in LAYOUTS if o.name == "official_mask_rcnn")])
def test_trained_models(
    layout: OfficialLayout | None,
    experiment: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One of our own, and one in the names of the official release."""
    trained = build(experiment).state_dict()
    named = trained if layout is None else export_official(trained, layout)
    torch.save({"model": named, "iteration": 3}, tmp_path / "trained.pth")
    state = loaded(experiment, convert(tmp_path / "trained.pth", experiment), caplog)
    assert state.keys() == trained.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, trained[name]), name


def test_classifiers_of_other_classes_are_left_out(
    experiment: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys
) -> None:
    trained = build(experiment).state_dict()
    torch.save(trained, tmp_path / "trained.pth")
    converted = convert(tmp_path / "trained.pth", experiment, "dataset.num_classes=3")
    names = torch.load(converted, weights_only=True)["model"].keys()
    assert "wrong shape: 6" in capsys.readouterr().out
    assert len(trained.keys() - names) == 6
    assert all(".predictor." in n or ".box_predictor." in n for n in trained.keys() - names)
