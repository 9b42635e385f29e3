import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from vitadapter.checkpoint import convert_official_backbone
from vitadapter.modeling.backbone import ViT, ViTAdapter, ViTBaseline

# The official Mask R-CNN recipes on plain ViTs.
RECIPES = [
    "mask_rcnn_augreg_adapter_large_fpn_1x_coco",
    "mask_rcnn_augreg_adapter_large_fpn_3x_coco",
    "mask_rcnn_augreg_large_fpn_3x_coco",
    "mask_rcnn_deit_adapter_base_fpn_1x_coco",
    "mask_rcnn_deit_adapter_base_fpn_3x_coco",
    "mask_rcnn_deit_adapter_small_3x_coco",
    "mask_rcnn_deit_adapter_small_fpn_1x_coco",
    "mask_rcnn_deit_adapter_small_fpn_3x_coco",
    "mask_rcnn_deit_adapter_tiny_fpn_1x_coco",
    "mask_rcnn_deit_adapter_tiny_fpn_3x_coco",
    "mask_rcnn_deit_base_fpn_3x_coco",
    "mask_rcnn_deit_small_fpn_3x_coco",
    "mask_rcnn_deit_tiny_fpn_3x_coco",
    "mask_rcnn_dinov2_adapter_base_fpn_3x_coco",
    "mask_rcnn_dinov2_adapter_large_fpn_3x_coco",
    "mask_rcnn_dinov2_adapter_small_fpn_3x_coco",
    "mask_rcnn_mae_adapter_base_lsj_fpn_25ep_coco",
    "mask_rcnn_mae_adapter_base_lsj_fpn_50ep_coco",
]


def _build(backbone: dict[str, object]) -> nn.Module:
    """Our backbone for an official recipe's, without memory."""
    windows = [i for i, size in enumerate(backbone["window_size"]) if size is not None]
    with torch.device("meta"):
        net = ViT(
            patch_size=backbone["patch_size"],
            embed_dim=backbone["embed_dim"],
            depth=backbone["depth"],
            num_heads=backbone["num_heads"],
            norm_layer=partial(nn.LayerNorm, eps=backbone["layernorm_eps"]),
            window_size=14,
            window_block_indexes=windows,
            pretrain_img_size=backbone["pretrain_size"],
            pad_after_qkv=True,
            layer_scale_init=backbone["vit_layer_scale_init"],
        )
        if "adapter" not in backbone:
            return ViTBaseline(net, block_indexes=backbone["out_indices"])
        adapter = backbone["adapter"]
        return ViTAdapter(
            net,
            interaction_indexes=adapter["interaction_indexes"],
            conv_dim=adapter["conv_inplane"],
            num_points=adapter["n_points"],
            deform_num_heads=adapter["deform_num_heads"],
            deform_ratio=adapter["deform_ratio"],
            ffn_ratio=adapter["cffn_ratio"],
            num_extra_extractors=adapter["num_extra_extractors"],
        )


@pytest.fixture(scope="module")
def backbones(shared: Path) -> dict[str, dict[str, object]]:
    recipes = json.loads((shared / "reference" / "recipes.json").read_text())["recipes"]
    return {recipe["name"]: recipe["backbone"] for recipe in recipes}


def _official_keys(shared: Path, name: str) -> dict[str, torch.Tensor]:
    """The whole official checkpoint, with tensors of the right shape but no memory."""
    folder = shared / "reference" / "keys"
    file = json.loads((folder / "index.json").read_text())[name]["file"]
    shapes = json.loads((folder / file).read_text())
    return {key: torch.empty(shape, device="meta") for key, (shape, _) in shapes.items()}


def _backbone_of(checkpoint: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        key.removeprefix("backbone."): tensor
        for key, tensor in checkpoint.items()
        if key.startswith("backbone.")
    }


@pytest.mark.parametrize("name", RECIPES)
def test_names_and_shapes_are_ours(
    name: str, shared: Path, backbones: dict[str, dict[str, object]]
) -> None:
    official = _backbone_of(_official_keys(shared, name))
    converted = convert_official_backbone(official)
    ours = _build(backbones[name]).state_dict()
    assert {key: tensor.shape for key, tensor in converted.items()} == {
        key: tensor.shape for key, tensor in ours.items()
    }


def test_a_whole_official_detector_is_refused(shared: Path) -> None:
    checkpoint = _official_keys(shared, "mask_rcnn_deit_adapter_tiny_fpn_1x_coco")
    with pytest.raises(ValueError, match=rf"among {len(checkpoint)} entries such as \['backbone"):
        convert_official_backbone(checkpoint)


def test_an_official_uni_perceiver_is_refused(shared: Path) -> None:
    checkpoint = _official_keys(shared, "mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco")
    with pytest.raises(ValueError, match="official plain-ViT backbone"):
        convert_official_backbone(_backbone_of(checkpoint))


@pytest.fixture(scope="module", params=["adapter", "baseline"])
def ours(request: pytest.FixtureRequest) -> nn.Module:
    net = ViT(embed_dim=32, depth=4, num_heads=2, layer_scale_init=1.0)
    if request.param == "baseline":
        return ViTBaseline(net)
    return ViTAdapter(net, conv_dim=8, deform_num_heads=2)


def test_puts_the_entries_of_the_net_under_net(ours: nn.Module) -> None:
    """The official classes subclass their ViT: the same names without `net.`."""
    state = ours.state_dict()
    official = {key.removeprefix("net."): tensor for key, tensor in state.items()}
    before = dict(official)
    assert len(official) == len(state) > len(ours.net.state_dict())
    converted = convert_official_backbone(official)
    assert set(converted) == set(state)
    assert all(converted[key] is state[key] for key in state)
    assert official == before
    ours.load_state_dict(converted, strict=True)


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("backbone.patch_embed.proj.weight", "backbone.blocks.0.norm1.weight"),
        ("net.patch_embed.proj.weight", "net.blocks.0.norm1.weight"),
        ("patch_embed.proj.weight", "layers.0.norm1.weight"),
        ("blocks.0.norm1.weight",),
        # a bare DeiT, an official BEiT backbone
        ("patch_embed.proj.weight", "pos_embed", "blocks.0.norm1.weight", "norm.weight"),
        ("patch_embed.proj.weight", "blocks.0.norm1.weight", "norm1.weight"),
        ("stem.conv1.weight", "res2.0.conv1.weight"),
    ],
)
def test_other_state_dicts_are_refused(names: tuple[str, ...]) -> None:
    state = {name: torch.zeros(1) for name in names}
    with pytest.raises(ValueError, match=r"has patch_embed\.proj\.weight, pos_embed, norm1"):
        convert_official_backbone(state)
