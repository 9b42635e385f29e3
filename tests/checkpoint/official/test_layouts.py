"""Official Mask R-CNN layouts here and back, against the official key lists and outputs."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from torch import Tensor, nn

from vitadapter.checkpoint import convert_official, export_official
from vitadapter.checkpoint.families import recognise
from vitadapter.checkpoint.loading import check_plan, plan_load
from vitadapter.checkpoint.official.layouts import LAYOUTS, MASK_RCNN, OFFICIAL_FAMILIES
from vitadapter.model_zoo import get_config
from vitadapter.modeling.backbone import ChannelMapper, LastLevelMaxPool2x2, UniPerceiver

# Our backbone for each official recipe; the rest of the model is common to all.
RECIPES = {
    "mask_rcnn_augreg_adapter_large_fpn_1x_coco": "vit_adapter_large",
    "mask_rcnn_augreg_large_fpn_3x_coco": "vit_baseline_large",
    "mask_rcnn_deit_adapter_base_fpn_1x_coco": "vit_adapter_base",
    "mask_rcnn_deit_adapter_small_fpn_1x_coco": "vit_adapter_small",
    "mask_rcnn_deit_adapter_tiny_fpn_1x_coco": "vit_adapter_tiny",
    "mask_rcnn_deit_base_fpn_3x_coco": "vit_baseline_base",
    "mask_rcnn_deit_small_fpn_3x_coco": "vit_baseline_small",
    "mask_rcnn_deit_tiny_fpn_3x_coco": "vit_baseline_tiny",
    "mask_rcnn_dinov2_adapter_base_fpn_3x_coco": "vit_adapter_base",
    "mask_rcnn_dinov2_adapter_large_fpn_3x_coco": "vit_adapter_large",
    "mask_rcnn_dinov2_adapter_small_fpn_3x_coco": "vit_adapter_small",
    "mask_rcnn_deit_adapter_small_3x_coco": "vit_adapter_small",
    "mask_rcnn_mae_adapter_base_lsj_fpn_25ep_coco": "vit_adapter_base",
    "mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco": "vit_adapter_base",
}


def make_official(shared: Path, name: str, device: str = "meta") -> dict[str, Tensor]:
    """A random checkpoint in an official layout, one number per tensor unless it is small."""
    folder = shared / "reference" / "keys"
    index = json.loads((folder / "index.json").read_text())
    shapes = json.loads((folder / index[name]["file"]).read_text())
    if device == "meta":
        return {key: torch.empty(shape, device="meta") for key, (shape, _) in shapes.items()}
    return {
        # expanded: distinct values at no memory
        key: torch.full((1,), float(i)).expand(shape) if shape else torch.tensor(float(i))
        for i, (key, (shape, _)) in enumerate(shapes.items())
    }


def build_model(name: str) -> nn.Module:
    """Our Mask R-CNN of an official recipe, without memory."""
    cfg = get_config("common/models/mask_rcnn_vit_adapter.py").model
    kind = "vit_baseline.py" if "baseline" in RECIPES[name] else "vit_adapter.py"
    cfg.backbone.bottom_up = get_config(f"common/models/{kind}")[RECIPES[name]]
    bottom_up = cfg.backbone.bottom_up
    if "dinov2" in name:
        bottom_up.net.pretrain_img_size = 592
    if "mae" in name:
        bottom_up.net.layer_scale_init = None
        bottom_up.num_extra_extractors = 0
        cfg.backbone.norm = "BN"
        cfg.proposal_generator.head.conv_dims = [-1, -1]
        cfg.roi_heads.box_head.update(conv_dims=[256] * 4, fc_dims=[1024], conv_norm="BN")
        cfg.roi_heads.mask_head.conv_norm = "BN"
    if "uniperceiver" in name:
        bottom_up.net = L(UniPerceiver)(embed_dim=768, depth=12, num_heads=12)
        bottom_up.drop_path_rate = 0.0
        bottom_up.use_act_checkpoint = False
    if "fpn" not in name:
        cfg.backbone = L(ChannelMapper)(
            bottom_up=bottom_up,
            in_features=["res2", "res3", "res4", "res5"],
            out_channels=256,
            top_block=L(LastLevelMaxPool2x2)(),
        )
    cfg.roi_heads.num_classes = 80
    with torch.device("meta"):
        return instantiate(cfg)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_names_and_shapes_are_ours_and_come_back(name: str, shared: Path) -> None:
    official = make_official(shared, name)
    conversion = convert_official(official, MASK_RCNN)
    assert not conversion.dropped
    ours = build_model(name).state_dict()
    assert {n: t.shape for n, t in conversion.tensors.items()} == {
        n: t.shape for n, t in ours.items()
    }
    back = export_official(conversion.tensors, MASK_RCNN)
    assert back.keys() == official.keys()
    assert all(back[key] is official[key] for key in official)


@pytest.mark.parametrize(
    "name",
    ["mask_rcnn_deit_adapter_tiny_fpn_1x_coco", "mask_rcnn_deit_tiny_fpn_3x_coco"],
)
def test_values_go_through_the_model_and_back(name: str, shared: Path) -> None:
    official = make_official(shared, name, device="cpu")
    model = build_model(name).to_empty(device="cpu")
    plan = plan_load(model, official, name, resize=False)
    check_plan(plan, model, complete=True)
    plan.apply(model)
    assert plan.report.family == "official_mask_rcnn"
    assert plan.report.net_share == 1.0
    assert not plan.report.unexpected
    back = export_official(model.state_dict(), MASK_RCNN)
    assert back.keys() == official.keys()
    for key, tensor in official.items():
        torch.testing.assert_close(back[key].double(), tensor.double(), rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_mask_rcnn_is_recognised(name: str, shared: Path) -> None:
    official = make_official(shared, name)
    assert recognise(official).name == "official_mask_rcnn"
    assert [layout.name for layout in LAYOUTS if layout.recognises(official)] == [MASK_RCNN.name]


def test_every_layout_keeps_every_name_of_its_key_lists(shared: Path) -> None:
    """Also what the model for it is not built here: no name is lost, none is made up."""
    names = json.loads((shared / "reference" / "keys" / "index.json").read_text())
    tried = set()
    for name in names:
        official = make_official(shared, name)
        for layout in LAYOUTS:
            if not layout.recognises(official):
                continue
            tried.add(layout.name)
            conversion = convert_official(official, layout)
            assert len(conversion.tensors) + len(conversion.dropped) == len(official)
            back = export_official(conversion.tensors, layout)
            assert back.keys() | conversion.dropped.keys() == official.keys(), name
    assert tried == {layout.name for layout in LAYOUTS}


def test_another_head_gives_its_backbone(shared: Path) -> None:
    """A head without a layout is not guessed at, but its backbone is worth having."""
    official = make_official(shared, "mask_rcnn_deit_adapter_tiny_fpn_1x_coco")
    unknown = {k.replace("roi_head.", "new_head."): t for k, t in official.items()}
    family = recognise(unknown)
    assert family.name == "official_backbone"
    conversion = family.converters[0](unknown)
    backbone = [k for k in official if k.startswith("backbone.")]
    assert len(conversion.tensors) == len(backbone)
    assert len(conversion.dropped) == len(official) - len(backbone)
    assert set(conversion.dropped.values()) == {"not part of the plain ViT"}


def test_a_file_without_layer_scale_has_ones(shared: Path) -> None:
    """The released Mask R-CNN-T 1x file was trained without it, its config has it."""
    name = "mask_rcnn_deit_tiny_fpn_3x_coco"
    official = make_official(shared, name, device="cpu")
    without = {k: t for k, t in official.items() if not k.endswith(("gamma1", "gamma2"))}
    model = build_model(name).to_empty(device="cpu")
    plan = plan_load(model, without, name)
    check_plan(plan, model, complete=True)
    assert len(plan.report.implied) == 24
    plan.apply(model)
    assert torch.equal(model.backbone.bottom_up.net.blocks[3].gamma2, torch.ones(192))
    # One gamma alone is a broken file.
    without["backbone.blocks.0.gamma1"] = official["backbone.blocks.0.gamma1"]
    plan = plan_load(model, without, name)
    with pytest.raises(ValueError, match=r"23 of the .* weights are missing"):
        check_plan(plan, model, complete=True)


def test_bad_input() -> None:
    backbone = {
        f"backbone.{name}": torch.zeros(1)
        for name in (
            "patch_embed.proj.weight",
            "pos_embed",
            "blocks.0.attn.qkv.weight",
            "level_embed",
        )
    }
    with pytest.raises(ValueError, match=r"mmdet names\) has no neck\.a, .* \(4 unknown"):
        convert_official(backbone | {f"neck.{c}": torch.zeros(1) for c in "abcd"}, MASK_RCNN)
    with pytest.raises(ValueError, match="an official backbone has one of"):
        convert_official({"backbone.layer1.0.conv1.weight": torch.zeros(1)}, MASK_RCNN)
    with pytest.raises(ValueError, match=r"nothing like sem_seg_head\.x"):
        export_official({"sem_seg_head.x": torch.zeros(1)}, MASK_RCNN)


def test_names_of_families_are_unique() -> None:
    names = [family.name for family in OFFICIAL_FAMILIES]
    assert len(set(names)) == len(names)
