"""Whole loads: into a small detector-like model with a ViT-Adapter, from each kind of file."""

import re
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn

from vitadapter.checkpoint.loading import LoadPlan, check_plan, plan_load
from vitadapter.modeling.backbone import (
    BEiT,
    SimpleFeaturePyramid,
    TimmViT,
    UniPerceiver,
    ViT,
    ViTAdapter,
)
from vitadapter.modeling.backbone.pyramid import PyramidBackbone

SIZE = {"embed_dim": 32, "depth": 4, "num_heads": 2}


class Model(nn.Module):
    """A backbone below a neck, with a head."""

    def __init__(self, backbone: PyramidBackbone, classes: int = 5) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = backbone
        self.head = nn.Linear(8, classes)


def make_model(classes: int = 5, feature_norm: str | None = None, **arguments: object) -> Model:
    net = ViT(**(SIZE | {"pretrain_img_size": 64} | arguments))
    adapter = ViTAdapter(net, conv_dim=8, deform_num_heads=2, feature_norm=feature_norm)
    return Model(adapter, classes)


def make_timm(name: str = "vit_tiny_patch16_224", **arguments: object) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(name, **(SIZE | {"img_size": 64} | arguments))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.state_dict()


def plan(model: nn.Module, state: dict[str, Tensor], **arguments: bool) -> LoadPlan:
    planned = plan_load(model, state, "w.pth", resize=not arguments.get("complete", False))
    check_plan(planned, model, **arguments)
    return planned


def test_the_final_norm_reaches_a_net_that_has_one() -> None:
    model, state = make_model(feature_norm="net"), make_timm()
    planned = plan(model, state)
    planned.apply(model)
    assert torch.equal(model.backbone.bottom_up.net.norm.weight, state["norm.weight"])
    assert not any("norm" in name for name in planned.report.dropped)
    del state["norm.weight"], state["norm.bias"]
    assert "backbone.bottom_up.net.norm.bias" in plan(model, state).report.missing


def test_a_pre_trained_vit_reaches_the_net_and_nothing_else() -> None:
    """Also timm's final norm, which has the width of the adapter's norms."""
    model, state = make_model(), make_timm(num_classes=32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    planned = plan(model, state)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    planned.apply(model)
    net = "backbone.bottom_up.net."
    for name, tensor in model.state_dict().items():
        expected = state[name.removeprefix(net)] if name.startswith(net) else before[name]
        assert torch.equal(tensor, expected), name
    report = planned.report
    assert report.family == "timm_vit"
    assert report.net_share == 1.0
    assert set(report.loaded) == {n for n in before if n.startswith(net)}
    assert report.dropped.keys() == {
        f"{net}norm.weight",
        f"{net}norm.bias",
        "head.weight",
        "head.bias",
        f"{net}cls_token",
    }
    assert report.unexpected == []
    counts = [n for n in before if not n.startswith(net) and not n.endswith("num_batches_tracked")]
    assert sorted(report.missing) == sorted(counts)
    assert report.missing["backbone.bottom_up.interactions.0.injector.gamma"] == "stays 0"
    assert not planned.is_doubtful


@pytest.mark.parametrize(
    ("make_net", "scale"),
    [
        (partial(ViT, pretrain_img_size=64, layer_scale_init=1.0), "gamma1"),
        (partial(TimmViT, "vit_small_patch14_dinov2", pretrain_img_size=64), "ls1.gamma"),
    ],
)
@pytest.mark.parametrize("name", ["ls{}.gamma", "gamma_{}", "gamma{}"])
def test_layer_scale_goes_into_both_nets(
    make_net: Callable[..., nn.Module], scale: str, name: str
) -> None:
    """From the names of DINOv2 and timm, of DeiT III, and of what was converted for our ViT."""
    model = Model(ViTAdapter(make_net(**SIZE), conv_dim=8, deform_num_heads=2))
    state = make_timm("vit_small_patch14_dinov2", img_size=56)  # the same 4 x 4 grid
    planned = plan(
        model,
        {re.sub(r"ls([12])\.gamma", name.format(r"\1"), key): t for key, t in state.items()},
    )
    planned.apply(model)
    net = model.backbone.bottom_up.net
    for i in range(4):
        assert torch.equal(net.get_parameter(f"blocks.{i}.{scale}"), state[f"blocks.{i}.ls1.gamma"])
    assert planned.report.net_share == 1.0
    (name, resized), *_ = planned.report.resized.items()
    assert name.endswith("patch_embed.proj.weight")
    assert str(resized) == "(32, 3, 14, 14) to (32, 3, 16, 16), bilinear"


@pytest.mark.parametrize("is_mae", [False, True])
def test_without_layer_scale_is_layer_scale_1(is_mae: bool) -> None:
    """timm's DINOv2 starts it at 1e-5, with which pre-trained blocks would do nothing."""
    net = TimmViT("vit_small_patch14_reg4_dinov2", **SIZE, pretrain_img_size=64)
    model = Model(ViTAdapter(net, conv_dim=8, deform_num_heads=2))
    state = make_timm()
    if is_mae:
        state["mask_token"] = state["decoder_pred.bias"] = torch.zeros(1)
    planned = plan(model, state)
    planned.apply(model)
    assert planned.report.family == ("mae" if is_mae else "timm_vit")
    assert len(planned.report.implied) == 8
    for block in net.blocks:
        assert (block.ls1.gamma == 1).all()
        assert (block.ls2.gamma == 1).all()
    # What cannot be known is told, and loudly.
    (missing,) = (name for name in planned.report.missing if ".net." in name)
    assert missing == "backbone.bottom_up.net.reg_token"
    assert planned.is_doubtful


@pytest.mark.parametrize("family", ["vitadapter", "bare"])
def test_our_own_checkpoints(family: str) -> None:
    source, model = make_model(), make_model(classes=3)
    state = source.state_dict()
    if family == "bare":  # the backbone alone
        state = source.backbone.bottom_up.state_dict()
    planned = plan(model, state)
    planned.apply(model)
    ours = model.backbone.bottom_up.state_dict()
    assert all(torch.equal(ours[n], t) for n, t in source.backbone.bottom_up.state_dict().items())
    assert planned.report.family == "vitadapter"
    wrong = {"head.weight", "head.bias"} if family == "vitadapter" else set()
    assert planned.report.wrong_shape.keys() == wrong
    if wrong:
        with pytest.raises(ValueError, match=r"2 of the .* head\.weight is \(5, 8\) in the file"):
            plan(model, state, complete=True)
    plan(make_model(), source.state_dict(), complete=True)


def test_our_own_net_moves_to_another_kind_of_model() -> None:
    """From below a neck to a pyramid that is the whole backbone."""
    model = nn.Module()
    model.backbone = SimpleFeaturePyramid(
        ViT(**SIZE, pretrain_img_size=64), "last_feat", 16, (4.0, 2.0, 1.0, 0.5)
    )
    source = make_model()
    planned = plan(model, source.state_dict())
    planned.apply(model)
    ours, theirs = model.backbone.net.state_dict(), source.backbone.bottom_up.net.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert planned.report.net_share == 1.0


def test_tables_of_relative_positions_are_resized() -> None:
    net = BEiT(**SIZE, window_size=3, window_block_indexes=[0, 1, 2, 3], use_cls_token=False)
    model = Model(ViTAdapter(net, conv_dim=8, deform_num_heads=2))
    state = make_timm("beit_base_patch16_224")
    planned = plan(model, state)
    tables = [name for name in planned.report.resized if name.endswith("bias_table")]
    assert len(tables) == 4
    assert planned.report.net_share == 1.0
    assert planned.report.family == "beit"


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("vit_small_patch16_dinov3", "dinov3"),
        ("eva02_base_patch14_224", "eva02"),
        ("beit3_base_patch16_224", "timm_vit"),
        ("deit3_small_patch16_224", "dinov2"),  # it has layer scale too
        ("vit_base_patch16_siglip_224", "timm_vit"),
    ],
)
def test_timms_files_go_into_timm_vit(name: str, family: str) -> None:
    model = Model(ViTAdapter(TimmViT(name, **SIZE), conv_dim=8, deform_num_heads=2))
    state = timm.create_model(name, **SIZE).state_dict()
    planned = plan(model, state)
    planned.apply(model)
    assert (planned.report.family, planned.report.net_share) == (family, 1.0)
    net = model.backbone.bottom_up.net.state_dict()
    same = [key for key in state if key in net and state[key].shape == net[key].shape]
    assert len(same) >= len(net) - 1  # the patches of EVA-02 are resized
    assert all(torch.equal(net[key], state[key]) for key in same)


def test_uni_perceiver() -> None:
    net = UniPerceiver(**SIZE, pretrain_img_size=64)
    state = {
        key.replace("blocks.", "layers."): torch.randn_like(tensor)
        for key, tensor in net.state_dict().items()
    }
    state |= {"loss_prepare.x": torch.ones(1), "type_embed.weight": torch.ones(1)}
    planned = plan(Model(ViTAdapter(net, conv_dim=8, deform_num_heads=2)), state)
    assert (planned.report.family, planned.report.net_share) == ("uni_perceiver", 1.0)
    assert planned.report.dropped == {
        "loss_prepare.x": "head of the pre-training task",
        "type_embed.weight": "not part of the image encoder",
    }


@pytest.mark.parametrize(
    ("arguments", "file", "message"),
    [
        ({}, {"embed_dim": 64}, r"has none of the .*net\.\S+ is \(1, 17, 64\) in the file"),
        ({"depth": 8}, {}, r"has 5\d\.\d% of the net's parameters, 90% are needed: .*blocks\.4"),
        ({"depth": 2}, {}, r"has 24 tensors that the net does not have: .*net\.blocks\.2"),
        ({"mlp_ratio": 2.0}, {}, r"differs in size from the net: 12 tensors do not fit: .*fc1"),
        ({}, {"name": "vit_small_patch14_dinov2"}, r"8 tensors that the net does not .*gamma1"),
    ],
)
def test_another_size_is_refused(
    arguments: dict[str, object], file: dict[str, object], message: str
) -> None:
    net = ViT(**(SIZE | {"pretrain_img_size": 64} | arguments))
    model = Model(ViTAdapter(net, num_interactions=2, conv_dim=8, deform_num_heads=2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"w\.pth.*{message}"):
        plan(model, make_timm(**file))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    if not file.get("embed_dim"):
        planned = plan(model, make_timm(**file), allow_partial=True)
        planned.apply(model)
        assert 0 < planned.report.net_share <= 1


def test_other_bad_input() -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"w\.pth cannot be loaded: its names belong to no known"):
        plan(model, {"conv1.weight": torch.ones(1)})
    state = make_timm()
    state["blocks.0.norm1.weight"] = torch.ones(32, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"w\.pth .*norm1\.weight is torch\.int8, the model has"):
        plan(model, state)
    with pytest.raises(ValueError, match=r"one plain ViT, but the model has \['0\.b.*', '1\.b"):
        plan(nn.Sequential(make_model(), make_model()), state)
    # A detector over a ResNet of Detectron2: only its head fits.
    foreign = {"backbone.bottom_up.res2.0.conv1.weight": torch.ones(1)}
    with pytest.raises(ValueError, match="no known family"):
        plan(model, foreign | nn.Module.state_dict(model.head, prefix="head."))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.fill_(torch.nan), r"qkv\.bias \(96 of 96\)"),
        (lambda t: t.index_fill(0, torch.tensor(3), torch.inf), r"qkv\.bias \(1 of 96\)"),
        (lambda t: t.double() * 1e300, r"NaN or infinite, in the model's precision: .*qkv\.bias"),
        (lambda t: t.to_sparse(), "blocks.3.attn.qkv.bias is sparse"),
        (lambda t: t.to("meta"), "blocks.3.attn.qkv.bias is without values"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8), "qkv.bias is quantised"),
        (lambda t: torch.nested.nested_tensor([t, t[:2]]), "qkv.bias is nested"),
        (lambda t: t.to(torch.complex64), r"qkv\.bias is torch\.complex64, the model has"),
    ],
)
@pytest.mark.parametrize("allow_partial", [False, True])
def test_nothing_is_copied_if_one_entry_is_bad(
    change: Callable[[Tensor], Tensor], message: str, allow_partial: bool
) -> None:
    model, state = make_model(), make_timm()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["blocks.3.attn.qkv.bias"] = change(state["blocks.3.attn.qkv.bias"].clone())
    with pytest.raises(ValueError, match=rf"w\.pth cannot be loaded: .*{message}"):
        plan(model, state, allow_partial=allow_partial).apply(model)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_running_statistics_and_heads_are_checked_too() -> None:
    model = make_model()
    state = model.state_dict()
    for name in ("backbone.bottom_up.norm1.running_var", "head.weight"):
        broken = state | {name: torch.full_like(state[name], torch.nan)}
        with pytest.raises(ValueError, match=f"1 of its tensors .*{name}"):
            plan(make_model(), broken)
    # What does not go into the model does not matter.
    plan(model, make_timm(num_classes=4) | {"head.bias": torch.full((4,), torch.nan)})


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_entries_of_another_rank(rank: int) -> None:
    other = torch.ones((2,) * rank)
    for name in ("pos_embed", "patch_embed.proj.weight"):
        with pytest.raises(ValueError, match=rf"w\.pth .*{name}"):
            plan(make_model(), make_timm() | {name: other})
    # Of a token that the net does not have only the number of rows counts, for the positions.
    state = make_timm() | {"cls_token": other, "pos_embed": torch.ones(1, 37, 32)}
    assert plan(make_model(), state).report.net_share == 1.0


def test_entries_that_a_converter_cannot_join() -> None:
    state = make_timm("vit_small_patch14_dinov2", img_size=56)
    state |= {"register_tokens": torch.ones(1, 4, 32), "cls_token": torch.ones(1, 1, 7)}
    with pytest.raises(ValueError, match=r"w\.pth cannot be loaded: its tensors do not fit"):
        plan(make_model(layer_scale_init=1.0), state)


@pytest.mark.parametrize("prefix", ["backbone.", "model.backbone.", "teacher.backbone.", "visual."])
def test_a_plain_vit_inside_another_model(prefix: str) -> None:
    model, state = make_model(), make_timm()
    planned = plan(model, {f"{prefix}{name}": tensor for name, tensor in state.items()})
    planned.apply(model)
    net = model.backbone.bottom_up.net
    assert torch.equal(net.blocks[2].mlp.fc1.weight, state["blocks.2.mlp.fc1.weight"])
    assert planned.report.net_share == 1.0
    name = "blocks.2.mlp.fc1.weight"
    assert planned.report.renamed[prefix + name] == f"backbone.bottom_up.net.{name}"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            129,
            r"\(1, 129, 32\) in the file, .*129 positions are not a square grid after 0 or 1 ",
        ),
        (14 * 28 + 1, "393 positions are not a square grid after 0 or 1 rows"),
        (14 * 28, "392 positions are not a square grid"),
        (2 + 49, "51 positions are not a square grid"),  # distilled, but without its token
    ],
)
def test_positions_of_a_grid_that_is_not_square(rows: int, message: str) -> None:
    state = make_timm()
    state["pos_embed"] = torch.ones(1, rows, 32)
    with pytest.raises(ValueError, match=message):
        plan(make_model(), state)


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_siglip_224",
    ],
)
def test_positions_start_behind_the_files_tokens(name: str) -> None:
    """Each row of the grid is a number of its own, and none of the prefix arrives in it."""
    patch = 14 if "patch14" in name else 16
    state = make_timm(name, img_size=8 * patch)
    rows = state["pos_embed"].shape[1]
    state["pos_embed"] = torch.full((1, rows, 32), 1e6)
    state["pos_embed"][:, rows - 64 :] = 1
    scale = {"layer_scale_init": 1.0} if "blocks.0.ls1.gamma" in state or "deit3" in name else {}
    planned = plan(make_model(**scale), state, allow_partial=True)
    fitted = planned.tensors["backbone.bottom_up.net.pos_embed"]
    assert fitted.shape == (1, 17, 32)
    torch.testing.assert_close(fitted[:, 1:], torch.ones(1, 16, 32))


@pytest.mark.parametrize(("patch", "is_right"), [(8, False), (14, True), (20, True), (32, False)])
def test_other_patches(patch: int, is_right: bool) -> None:
    state = make_timm()
    state["patch_embed.proj.weight"] = torch.ones(32, 3, patch, patch)
    if is_right:
        report = plan(make_model(), state).report
        assert report.resized["backbone.bottom_up.net.patch_embed.proj.weight"].before[2] == patch
        return
    message = rf"patches of {patch} x {patch} pixels cannot stand for 16 x 16: .*factor of 1\.5"
    with pytest.raises(ValueError, match=message):
        plan(make_model(), state)
    planned = plan(make_model(), state, allow_partial=True)
    assert planned.is_doubtful


def test_half_precision_is_widened() -> None:
    model, state = make_model(), make_timm()
    plan(model, {name: tensor.half() for name, tensor in state.items()}).apply(model)
    weight = model.backbone.bottom_up.net.blocks[1].mlp.fc1.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["blocks.1.mlp.fc1.weight"].half().float())


def test_the_report(tmp_path) -> None:
    state = make_timm("vit_small_patch14_dinov2", img_size=56)
    planned = plan(make_model(layer_scale_init=1.0), state)
    lines = planned.report.summary().splitlines()
    assert lines[0] == "w.pth (dinov2): 59 tensors loaded, 100.0% of the net's parameters"
    assert "  resized: 1" in lines
    assert "    blocks.#.ls2.gamma -> backbone.bottom_up.net.blocks.#.gamma2 (4)" in lines
    assert "    backbone.bottom_up.interactions (172)" in lines
    assert len(lines) < 40
    planned.report.write(tmp_path / "report.txt")
    text = (tmp_path / "report.txt").read_text()
    for name in planned.report.loaded + tuple(planned.report.missing):
        assert f"\n{name}" in text
    assert "blocks.3.ls1.gamma -> backbone.bottom_up.net.blocks.3.gamma1" in text
