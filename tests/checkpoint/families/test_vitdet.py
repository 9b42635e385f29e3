"""Detectron2's own ViTDets as its model zoo keeps them, and EVA-02's: into our nets and models."""

import importlib.util
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import SimpleFeaturePyramid as Detectron2SimpleFeaturePyramid
from detectron2.modeling import ViT as Detectron2ViT
from omegaconf import DictConfig, OmegaConf
from project_configs import PROJECT, shrink
from torch import Tensor, nn

from vitadapter.checkpoint.families import recognise
from vitadapter.checkpoint.loading import LoadPlan, check_plan, plan_load
from vitadapter.checkpoint.reading import read_state_dict
from vitadapter.modeling.backbone import SimpleFeaturePyramid, TimmViT, ViT, ViTAdapter

CASCADE = PROJECT / "configs" / "COCO" / "cascade_mask_rcnn_vitdet_l_mae_lsj_100ep.py"
SIZE = 128
OTHER_PYRAMID = "of the simple feature pyramid, which the model does not have"


def detectron2_config() -> DictConfig:
    """Detectron2's own Mask R-CNN on ViTDet-B, which its project's experiments start from."""
    origin = importlib.util.find_spec("detectron2").submodule_search_locations[0]
    path = Path(origin, "model_zoo", "configs", "common", "models", "mask_rcnn_vitdet.py")
    cfg = {"model": LazyConfig.load(str(path)).model, "dataset": {}}
    return OmegaConf.create(cfg, flags={"allow_objects": True})


def small(name: str, net: type[nn.Module] = ViT) -> DictConfig:
    """A model of a few channels and classes, with relative positions, images of 128 pixels."""
    cfg = detectron2_config() if name == "mask_rcnn" else LazyConfig.load(str(CASCADE))
    cfg.dataset.num_classes = 3
    model = shrink(cfg).model
    model.backbone.square_pad = SIZE
    model.backbone.net.update(_target_=net, img_size=SIZE, window_size=3, rel_pos_zero_init=False)
    model.proposal_generator.update(pre_nms_topk=(50, 50), post_nms_topk=(20, 20))
    if name == "mask_rcnn":
        model.roi_heads.num_classes = 3
    return model


def build_reference(name: str) -> nn.Module:
    """With Detectron2's own net and pyramid."""
    model = small(name, Detectron2ViT)
    model.backbone._target_ = Detectron2SimpleFeaturePyramid
    for ours in ("pad_after_qkv", "layer_scale_init"):
        model.backbone.net.pop(ours, None)
    torch.manual_seed(0)
    return instantiate(model).eval()


def build_ours(name: str) -> nn.Module:
    model = small(name)
    model.backbone._target_ = SimpleFeaturePyramid
    torch.manual_seed(1)
    return instantiate(model).eval()


def adapt(net: nn.Module) -> nn.Module:
    """A model that has nothing but an adapter around a net."""
    model = nn.Module()
    model.backbone = ViTAdapter(net, num_interactions=2, conv_dim=8, deform_num_heads=2)
    return model


def write(model: nn.Module, path: Path, protocol: int = 4) -> Path:
    """As Detectron2 releases models."""
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    arrays["pixel_mean"] = model.pixel_mean.numpy()  # as older files have it
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def load(model: nn.Module, state: dict[str, Tensor], **arguments: bool) -> LoadPlan:
    plan = plan_load(model, state, "w.pkl", resize=not arguments.get("complete", False))
    check_plan(plan, model, **arguments)
    plan.apply(model)
    return plan


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade"])
@torch.no_grad()
def test_a_whole_detector_computes_the_same(name: str, tmp_path: Path) -> None:
    reference, ours = build_reference(name), build_ours(name)
    state = read_state_dict(write(reference, tmp_path / "model_final.pkl"))
    plan = load(ours, state, complete=True)
    assert plan.report.family == "vitdet"
    assert plan.report.dropped == {"pixel_mean": "follows from the config"}
    assert not plan.is_doubtful
    image = torch.randint(0, 256, (3, 100, SIZE), generator=torch.Generator().manual_seed(0))
    inputs = [{"image": image, "height": 100, "width": SIZE}]
    expected, found = (model(inputs)[0]["instances"] for model in (reference, ours))
    assert len(expected) > 0
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(found.pred_masks, expected.pred_masks)


@pytest.mark.parametrize("protocol", [2, 5])
@torch.no_grad()
def test_the_net_alone_into_an_adapter(protocol: int, tmp_path: Path) -> None:
    """The pyramid stays behind, and the report says so."""
    reference = build_reference("mask_rcnn")
    state = read_state_dict(write(reference, tmp_path / "model_final.pkl", protocol))
    model = adapt(instantiate(small("mask_rcnn").backbone.net))
    report = load(model, state).report
    assert report.net_share == 1.0
    pyramid = {name: why for name, why in report.dropped.items() if "simfp" in name}
    assert set(pyramid.values()) == {OTHER_PYRAMID}
    assert not [name for name in report.unexpected if "simfp" in name or ".net." in name]
    images = torch.randn(1, 3, SIZE, SIZE)
    expected = reference.backbone.net.eval()(images)["last_feat"]
    found = model.backbone.net.eval()(images)["last_feat"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_relative_positions_of_other_windows() -> None:
    """Resized as Detectron2's ViT does it itself."""
    make = partial(
        ViT, embed_dim=32, depth=2, num_heads=2, use_rel_pos=True, rel_pos_zero_init=False
    )
    old = make(img_size=128, window_size=4, window_block_indexes=[0])
    new = make(img_size=96, window_size=6, window_block_indexes=[0])
    model = adapt(new)
    state = {f"backbone.net.{name}": tensor for name, tensor in old.state_dict().items()}
    report = load(model, state).report
    assert len(report.resized) == 4
    assert report.net_share == 1.0
    name = "blocks.0.attn.rel_pos_h"
    expected = nn.functional.interpolate(
        old.state_dict()[name].reshape(1, 7, -1).permute(0, 2, 1), size=11, mode="linear"
    )
    assert torch.equal(new.get_parameter(name), expected.reshape(-1, 11).permute(1, 0))


def test_a_model_of_another_size(tmp_path: Path) -> None:
    path = write(build_reference("mask_rcnn"), tmp_path / "model_final.pkl")
    other = small("mask_rcnn")
    other.backbone.net.update(embed_dim=64)
    model = instantiate(other)
    with pytest.raises(ValueError, match=r"w\.pkl \(vitdet\) differs in size from the net: "):
        load(model, read_state_dict(path))
    with pytest.raises(
        ValueError, match=r"w\.pkl is of another model: .*missing or have the wrong shape"
    ):
        load(model, read_state_dict(path), complete=True)


def test_relative_positions_that_the_net_does_not_have(tmp_path: Path) -> None:
    path = write(build_reference("mask_rcnn"), tmp_path / "model_final.pkl")
    plain = small("mask_rcnn").backbone.net
    plain.use_rel_pos = False
    model = adapt(instantiate(plain))
    with pytest.raises(ValueError, match=r"that the net does not have: .*rel_pos_h"):
        load(model, read_state_dict(path))


def eva02_det(net: TimmViT, rest: dict[str, Tensor]) -> dict[str, Tensor]:
    """What EVA-02's fork of Detectron2 saves: its own names, RoPE's tables, no class token."""
    names = {".mlp.norm.": ".mlp.ffn_ln.", ".mlp.fc1_g.": ".mlp.w1.", ".mlp.fc1_x.": ".mlp.w2."}
    names |= {".mlp.fc2.": ".mlp.w3.", ".q_proj.bias": ".q_bias", ".v_proj.bias": ".v_bias"}
    state = {}
    for name, tensor in net.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[f"backbone.net.{name}"] = torch.randn(tensor.shape)
    del state["backbone.net.cls_token"]
    for owner in ("rope_win", "rope_glb", "blocks.0.attn.rope", "blocks.1.attn.rope"):
        state |= {f"backbone.net.{owner}.freqs_{f}": torch.ones(256, 12) for f in ("cos", "sin")}
    return state | rest


@pytest.mark.parametrize("adapted", [False, True])
def test_the_detectors_of_eva02(adapted: bool) -> None:
    net = TimmViT("eva02_base_patch14_224", embed_dim=48, depth=2, num_heads=4)
    pyramid = partial(SimpleFeaturePyramid, in_feature="last_feat", out_channels=8, norm="LN")
    other = pyramid(net, scale_factors=(4.0, 2.0, 1.0, 0.5))
    rest = {f"backbone.{n}": t for n, t in other.state_dict().items() if n.startswith("simfp")}
    state = eva02_det(net, {name: torch.randn(t.shape) for name, t in rest.items()})
    assert recognise(state).name == "eva02_det"
    model = nn.Module()
    model.backbone = adapt(net).backbone if adapted else other
    report = load(model, state).report
    assert report.net_share > 0.999
    assert report.unexpected == []
    assert not report.wrong_shape
    assert [n for n in report.missing if ".net." in n] == ["backbone.net.cls_token"]
    reasons = {"rotary positions, which the net computes itself", OTHER_PYRAMID}
    assert set(report.dropped.values()) == (reasons if adapted else reasons - {OTHER_PYRAMID})
    for ours, theirs in (
        ("mlp.fc1_g.weight", "mlp.w1.weight"),
        ("attn.v_proj.bias", "attn.v_bias"),
    ):
        expected = state[f"backbone.net.blocks.1.{theirs}"]
        assert torch.equal(net.get_parameter(f"blocks.1.{ours}"), expected)
    if not adapted:
        assert all(torch.equal(model.state_dict()[name], state[name]) for name in rest)
