from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from vitadapter.analysis.feature_scales import (
    FeatureScale,
    feature_scales,
    scale_table,
    scale_warnings,
    scales_of_config,
)
from vitadapter.commands.analyze_model import main
from vitadapter.engine.overrides import load_config
from vitadapter.modeling.backbone import ViT, ViTAdapter


def make_adapter(**settings: object) -> ViTAdapter:
    torch.manual_seed(0)
    net = ViT(embed_dim=32, depth=4, num_heads=2, pretrain_img_size=64)
    return ViTAdapter(net, conv_dim=8, deform_num_heads=2, norm="BN", **settings)


def test_scales_over_images_of_several_sizes() -> None:
    adapter = make_adapter(vit_feature="stage")
    batches = [torch.randn(2, 3, 64, 96), torch.randn(1, 3, 32, 64) * 3 + 1]
    scales = feature_scales(adapter, batches)
    assert adapter.training
    adapter.eval()
    for level, scale in enumerate(scales):
        for index, found in enumerate((scale.adapter, scale.vit)):
            with torch.no_grad():
                maps = [adapter.forward_maps(batch)[index][level] for batch in batches]
            values = torch.cat([m.transpose(0, 1).flatten(1) for m in maps], dim=1)
            expected = values.std(dim=1, correction=0).quantile(0.5)
            assert found == pytest.approx(float(expected), rel=1e-5)
    assert [scale.output for scale in scales] == ["res2", "res3", "res4", "res5"]
    assert len(scale_table(scales).splitlines()) == 6


def test_features_that_add_nothing_are_named_until_they_are_normalised() -> None:
    images = [torch.randn(1, 3, 64, 64)]
    drowned = make_adapter(vit_feature="stage")
    normalised = make_adapter(vit_feature="stage", feature_norm="net")
    for adapter in (drowned, normalised):
        adapter.net.pos_embed.data.mul_(1e-3)
        for block in adapter.net.blocks:  # what is left is the embedding of the patches
            nn.init.zeros_(block.attn.proj.weight)
            nn.init.zeros_(block.mlp.fc2.weight)
        adapter.net.patch_embed.proj.weight.data.mul_(1e-3)
        nn.init.zeros_(adapter.net.patch_embed.proj.bias)
    warnings = scale_warnings(feature_scales(drowned, images))
    assert len(warnings) == 4
    assert all('feature_norm="net"' in warning for warning in warnings)
    assert scale_warnings(feature_scales(normalised, images)) == []


def test_a_tenth_is_enough() -> None:
    assert not FeatureScale("res2", 1.0, 0.1).is_drowned
    assert FeatureScale("res2", 1.0, 0.099).is_drowned


def test_what_has_no_scales() -> None:
    with pytest.raises(ValueError, match="vit_feature=None"):
        feature_scales(make_adapter(vit_feature=None), [torch.zeros(1, 3, 32, 32)])
    with pytest.raises(ValueError, match="at least one batch"):
        feature_scales(make_adapter(), [])


def test_the_command_prints_scales_of_a_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With weights of the net alone, as trainings start from."""
    rng = np.random.default_rng(0)
    for index, size in enumerate([(64, 64, 3), (40, 90, 3)]):
        pixels = rng.integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    model = timm.create_model("vit_tiny_patch16_224", depth=4, img_size=128)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    config = ["Digits/upernet_vit_adapter_t", "model.backbone.net.depth=4", "train.device=cpu"]
    main([*config, "--size", "64", "64", "--images", str(tmp_path / "0.png"), str(tmp_path)])
    assert "3 images, random weights" in capsys.readouterr().out
    weights = f"train.init_checkpoint={tmp_path / 'net.pth'}"
    main([*config, "--size", "64", "64", "--images", str(tmp_path), weights])
    printed = capsys.readouterr().out
    assert "| res5 " in printed
    assert f"2 images, {tmp_path / 'net.pth'}" in printed


@pytest.mark.parametrize("key", ["train", "dataloader"])
def test_a_config_without_what_predictions_need(tmp_path: Path, key: str) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit, match=f"error: {key}"):
        main(["Digits/upernet_vit_adapter_t", "--images", str(tmp_path), f"~{key}"])


def test_a_model_without_adapter_is_refused(tmp_path: Path) -> None:
    cfg = load_config("Digits/upernet_vit_t", ["train.device=cpu"])
    with pytest.raises(ValueError, match="one ViTAdapter, this one has 0"):
        scales_of_config(cfg, [tmp_path])
