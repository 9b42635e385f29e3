"""DINOv2's published weights: the loaded nets compute what timm computes with them."""

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitadapter.checkpoint.loading import LoadPlan, check_plan, plan_load
from vitadapter.checkpoint.reading import read_state_dict
from vitadapter.modeling.backbone import TimmViT, ViT, ViTBaseline

FILE = "vit_small_patch14_dinov2_fp16.safetensors"
IMAGE_SIDE, GRID = 128, 8


@pytest.fixture(scope="module")
def weights(shared: Path) -> dict[str, Tensor]:
    path = shared / "weights" / FILE
    if not path.is_file():
        pytest.skip("shared data absent")
    return read_state_dict(path)


def load(net: nn.Module, weights: dict[str, Tensor]) -> LoadPlan:
    model = ViTBaseline(net)
    plan = plan_load(model, weights, FILE)
    check_plan(plan, model)
    plan.apply(model)
    return plan


def timm_tokens(weights: dict[str, Tensor], images: Tensor, **arguments: object) -> Tensor:
    """Patch tokens after timm's last block, with the patches made larger as officially done."""
    model = timm.create_model(
        "vit_small_patch14_dinov2", num_classes=0, patch_size=16, **arguments
    ).eval()
    state = {name: tensor.float() for name, tensor in weights.items()}
    state["patch_embed.proj.weight"] = F.interpolate(
        state["patch_embed.proj.weight"], (16, 16), mode="bilinear", align_corners=False
    )
    if not arguments.get("class_token", True):
        del state["cls_token"]
        grid = state["pos_embed"][:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (GRID, GRID), mode="bicubic", align_corners=False)
        state["pos_embed"] = grid.flatten(2).transpose(1, 2)
    incompatible = model.load_state_dict(state, strict=False)
    assert not incompatible.missing_keys
    assert not incompatible.unexpected_keys
    model.norm = nn.Identity()
    with torch.no_grad():
        return model.forward_features(images)[:, model.num_prefix_tokens :]


def net_tokens(net: nn.Module, images: Tensor) -> Tensor:
    net.eval()
    with torch.no_grad():
        x, prefix = net.embed(images)
        x, _ = net.forward_blocks(x, prefix, 0, net.depth)
    return x.flatten(1, 2)


@pytest.mark.parametrize("pretrain_img_size", [592, IMAGE_SIDE])
def test_vit_has_timms_tokens(weights: dict[str, Tensor], pretrain_img_size: int) -> None:
    """Without the class token, which our ViT drops as the official one does."""
    net = ViT(
        embed_dim=384,
        num_heads=6,
        layer_scale_init=1.0,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        pretrain_img_size=pretrain_img_size,
    )
    report = load(net, weights).report
    assert (report.family, report.net_share) == ("dinov2", 1.0)
    assert len(report.loaded) == len(weights) - 3 == 171
    assert report.dropped.keys() == {"net.norm.weight", "net.norm.bias", "net.cls_token"}
    resized = {"net.patch_embed.proj.weight"}
    if pretrain_img_size != 592:
        resized.add("net.pos_embed")
    assert report.resized.keys() == resized
    assert len(report.renamed) == 24
    images = torch.randn(1, 3, IMAGE_SIDE, IMAGE_SIDE, generator=torch.Generator().manual_seed(0))
    expected = timm_tokens(weights, images, img_size=IMAGE_SIDE, class_token=False, global_pool="")
    actual = net_tokens(net, images)
    assert expected.std() > 1
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_timm_vit_has_timms_tokens(weights: dict[str, Tensor]) -> None:
    net = TimmViT("vit_small_patch14_dinov2")
    report = load(net, weights).report
    assert (report.family, report.net_share) == ("dinov2", 1.0)
    assert len(report.loaded) == len(weights) - 2
    assert report.dropped.keys() == {"net.norm.weight", "net.norm.bias"}
    assert report.resized.keys() == {"net.patch_embed.proj.weight"}
    assert not report.renamed
    images = torch.randn(1, 3, IMAGE_SIDE, IMAGE_SIDE, generator=torch.Generator().manual_seed(0))
    expected = timm_tokens(weights, images, img_size=592, dynamic_img_size=True)
    torch.testing.assert_close(net_tokens(net, images), expected, rtol=1e-4, atol=1e-4)


def test_layer_scale_is_not_lost(weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"has 24 tensors that the net does not have: .*gamma1"):
        load(ViT(embed_dim=384, num_heads=6), weights)
