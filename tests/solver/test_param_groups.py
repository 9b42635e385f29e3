import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from vitadapter.checkpoint import convert_official
from vitadapter.checkpoint.official.layouts import MASK2FORMER
from vitadapter.modeling.backbone import BEiT, TimmViT, UniPerceiver, ViT, ViTAdapter
from vitadapter.solver import (
    FactorByName,
    LayerDecay,
    Mask2FormerLayerDecay,
    NoDecayByName,
    NoDecayOneDim,
    get_optimizer_params,
)

PREFIX = "backbone.bottom_up."
DEPTH = 4


def _model(freeze_net: bool = False) -> nn.Module:
    """A detector's names around a small ViTAdapter: `backbone.bottom_up.*` and `head.*`."""
    net = ViT(embed_dim=32, depth=DEPTH, num_heads=2, layer_scale_init=1.0)
    adapter = ViTAdapter(net, conv_dim=8, deform_num_heads=2, norm="BN", freeze_net=freeze_net)
    backbone = nn.Sequential(OrderedDict(bottom_up=adapter))
    return nn.Sequential(OrderedDict(backbone=backbone, head=nn.Linear(32, 4)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return _model()


Settings = dict[str, tuple[float, float]]


def _settings(model: nn.Module, groups: list[dict[str, object]]) -> Settings:
    """(learning rate, weight decay) by parameter name; a parameter in two groups fails."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings: Settings = {}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in settings
            settings[name] = (group["lr"], group["weight_decay"])
    return settings


@pytest.mark.parametrize("rate", [0.8, 0.65, 1.0])
def test_layer_decay_of_every_parameter(model: nn.Module, rate: float) -> None:
    groups = get_optimizer_params(
        model,
        base_lr=0.5,
        weight_decay=0.05,
        no_decay=NoDecayOneDim(),
        lr_factor_func=LayerDecay(rate, DEPTH),
    )
    settings = _settings(model, groups)
    assert set(settings) == {name for name, _ in model.named_parameters()}
    expected = {"net.pos_embed": 5, "net.patch_embed.": 5}
    expected |= {f"net.blocks.{i}.": 4 - i for i in range(DEPTH)}
    used = set()
    for name, (lr, _) in settings.items():
        start = next((s for s in expected if name.startswith(PREFIX + s)), None)
        used.add(start)
        exponent = 0 if start is None else expected[start]
        assert lr == pytest.approx(0.5 * rate**exponent), name
    assert used == {None, *expected}


@pytest.mark.parametrize(
    ("net", "embedding"),
    [
        (
            BEiT(64, embed_dim=32, depth=4, num_heads=2, use_cls_token=True),
            {"patch_embed", "cls_token"},
        ),
        (
            BEiT(
                embed_dim=32,
                depth=4,
                num_heads=2,
                window_size=2,
                window_block_indexes=[0, 2],
                global_window_size=4,
            ),
            {"patch_embed"},
        ),
        (UniPerceiver(embed_dim=32, depth=4, num_heads=2), {"visual_embed"}),
    ],
    ids=["beit_global", "beit_windows", "uni_perceiver"],
)
def test_layer_decay_of_other_nets(net: nn.Module, embedding: set[str]) -> None:
    """The official layers: 0 for patch_embed, pos_embed, cls_token, visual_embed; then blocks."""
    adapter = ViTAdapter(net, conv_dim=8, deform_num_heads=2, norm="BN")
    decay = LayerDecay(0.5, DEPTH)
    found: dict[str, set[float]] = {}
    for name, _ in adapter.named_parameters():
        parts = name.removeprefix("net.").split(".")
        part = name.split(".")[0] if not name.startswith("net.") else parts[0]
        part = ".".join(parts[:2]) if part == "blocks" else part
        found.setdefault(part, set()).add(decay(f"backbone.bottom_up.{name}"))
    expected = dict.fromkeys(embedding, 5) | {f"blocks.{i}": 4 - i for i in range(DEPTH)}
    rest = {"level_embed", "spm", "interactions", "up", "norm1", "norm2", "norm3", "norm4"}
    expected |= dict.fromkeys(rest, 0)
    assert found == {part: {0.5**exponent} for part, exponent in expected.items()}


@pytest.mark.parametrize(
    ("name", "embedding"),
    [
        ("vit_small_patch16_dinov3", {"cls_token", "reg_token"}),
        ("eva02_base_patch14_224", {"cls_token", "pos_embed"}),
        ("vit_small_patch14_reg4_dinov2", {"cls_token", "reg_token", "pos_embed"}),
        ("vit_base_patch16_siglip_256", {"pos_embed"}),
        ("vit_base_patch16_clip_224", {"cls_token", "pos_embed", "norm_pre"}),
        ("vit_small_patch16_rope_mixed_224", {"cls_token", "rope"}),
    ],
)
def test_layer_decay_of_timms_nets(name: str, embedding: set[str]) -> None:
    """timm's own grouping puts tokens and embeddings before the first block as well."""
    net = TimmViT(name, embed_dim=32, depth=2, num_heads=2)
    decay = LayerDecay(0.5, 2)
    factors = {n: decay(f"backbone.bottom_up.net.{n}") for n, _ in net.named_parameters()}
    assert {n.split(".")[0] for n, factor in factors.items() if factor == 0.125} == embedding | {
        "patch_embed"
    }
    for n, factor in factors.items():
        if n.startswith("blocks."):
            assert factor == {"0": 0.25, "1": 0.5}[n.split(".")[1]], n
    assert set(factors.values()) == {0.125, 0.25, 0.5}


def test_layer_decay_equals_detectron2s_on_a_vit() -> None:
    decay = LayerDecay(0.7, 12)
    names = ["backbone.net.pos_embed", "backbone.net.patch_embed.proj.weight", "head.weight"]
    names += [f"backbone.net.blocks.{i}.attn.qkv.weight" for i in range(12)]
    names += ["backbone.simfp_2.0.weight"]
    for name in names:
        expected = get_vit_lr_decay_rate(name, lr_decay_rate=0.7, num_layers=12)
        assert decay(name) == pytest.approx(expected), name


def test_layer_decay_of_the_large_recipe() -> None:
    # scale_id0 of the official recipes with rate 0.8 and 24 layers
    assert LayerDecay(0.8, 24)("backbone.bottom_up.net.pos_embed") == pytest.approx(
        0.00377789, rel=1e-5
    )


@pytest.mark.parametrize(
    ("name", "exponent"),
    [
        ("net.cls_token", 5),
        ("net.pos_embed", 5),
        ("net.reg_token", 5),
        ("net.mask_token", 5),
        ("net.norm_pre.weight", 5),
        ("net.visual_embed.embeddings_norm.bias", 5),
        ("net.blocks.2.attn.relative_position_bias_table", 2),
        ("net.blocks.2.gamma_1", 2),
        ("net.blocks.0.residual.conv1.weight", 4),
        ("net.blocks.3.mlp.fc1.bias", 1),
        # Only what lies in `net` is pre-trained.
        ("subnet.blocks.0.weight", 0),
        ("head.blocks.0.weight", 0),
        ("head.pos_embed", 0),
        ("head.visual_embed.weight", 0),
        ("net.visual_embedding.weight", 0),
        ("net.pos_embed_head.weight", 0),
        ("interactions.0.injector.gamma", 0),
        ("net.norm.weight", 0),
    ],
)
def test_layer_decay_by_name(name: str, exponent: int) -> None:
    assert LayerDecay(0.5, DEPTH)(name) == pytest.approx(0.5**exponent)


@pytest.mark.parametrize(
    ("rate", "num_layers"), [(0.0, 12), (-0.5, 12), (1.5, 12), (float("nan"), 12), (0.8, 0)]
)
def test_layer_decay_refuses_bad_arguments(rate: float, num_layers: int) -> None:
    with pytest.raises(ValueError, match=r"rate must lie in \(0, 1\] and num_layers be >= 1"):
        LayerDecay(rate, num_layers)


def test_layer_decay_refuses_a_deeper_net() -> None:
    assert LayerDecay(0.8, 12)("backbone.net.blocks.11.norm1.weight") == pytest.approx(0.8)
    with pytest.raises(ValueError, match=r"num_layers=12 .* backbone\.net\.blocks\.12\.norm1"):
        LayerDecay(0.8, 12)("backbone.net.blocks.12.norm1.weight")


# Whether a parameter is exempt from weight decay, as the recipes' "no_decay_rule" tells for the
# rule by name and the rule by dimensions.
EXEMPT = {
    f"{PREFIX}level_embed": (True, False),
    f"{PREFIX}net.pos_embed": (True, False),
    f"{PREFIX}net.patch_embed.proj.weight": (False, False),
    f"{PREFIX}net.patch_embed.proj.bias": (True, True),
    f"{PREFIX}net.blocks.0.norm1.weight": (True, True),
    f"{PREFIX}net.blocks.0.gamma1": (False, True),
    f"{PREFIX}net.blocks.0.gamma2": (False, True),
    f"{PREFIX}net.blocks.0.attn.qkv.weight": (False, False),
    f"{PREFIX}net.blocks.0.attn.qkv.bias": (True, True),
    f"{PREFIX}net.blocks.0.mlp.fc1.weight": (False, False),
    f"{PREFIX}spm.stem.0.weight": (False, False),
    f"{PREFIX}spm.stem.1.weight": (False, True),
    f"{PREFIX}spm.stem.1.bias": (True, True),
    f"{PREFIX}spm.fc1.weight": (False, False),
    f"{PREFIX}interactions.0.injector.gamma": (False, True),
    f"{PREFIX}interactions.0.injector.query_norm.weight": (True, True),
    f"{PREFIX}interactions.0.injector.attn.sampling_offsets.weight": (False, False),
    f"{PREFIX}interactions.0.extractor.ffn.dwconv.dwconv.weight": (False, False),
    f"{PREFIX}interactions.0.extractor.ffn_norm.weight": (True, True),
    f"{PREFIX}norm1.weight": (True, True),
    f"{PREFIX}norm4.bias": (True, True),
    f"{PREFIX}up.weight": (False, False),
    "head.weight": (False, False),
    "head.bias": (True, True),
}


@pytest.mark.parametrize(("rule", "column"), [(NoDecayByName(), 0), (NoDecayOneDim(), 1)])
def test_weight_decay_as_the_recipes_tell(
    model: nn.Module, rule: NoDecayByName | NoDecayOneDim, column: int
) -> None:
    groups = get_optimizer_params(model, base_lr=1e-4, weight_decay=0.05, no_decay=rule)
    settings = _settings(model, groups)
    expected = {name: 0.0 if exempt[column] else 0.05 for name, exempt in EXEMPT.items()}
    assert {name: settings[name][1] for name in EXEMPT} == expected
    # One group for each pair of values, as multi-tensor optimizers like it.
    assert len(groups) == 2


def test_no_decay_by_other_names() -> None:
    rule = NoDecayByName(["gamma"])
    assert rule("net.blocks.0.gamma1", torch.zeros(4))
    assert not rule("net.blocks.0.norm1.weight", torch.zeros(4))


def test_a_bias_of_any_shape_is_exempt() -> None:
    assert NoDecayOneDim()("head.bias", torch.zeros(2, 2))
    assert NoDecayOneDim()("scale", torch.zeros(()))


def test_equals_detectron2s_without_rules(model: nn.Module) -> None:
    ours = get_optimizer_params(
        model, base_lr=1e-3, weight_decay=0.1, no_decay=NoDecayByName(substrings=())
    )
    theirs = get_default_optimizer_params(model, base_lr=1e-3, weight_decay=0.1)
    assert _settings(model, ours) == _settings(model, theirs)


def test_frozen_parameters_are_left_out() -> None:
    model = _model(freeze_net=True)
    groups = get_optimizer_params(model, base_lr=1e-3, weight_decay=0.1, no_decay=NoDecayByName())
    expected = {n for n, _ in model.named_parameters() if not n.startswith(f"{PREFIX}net.")}
    assert set(_settings(model, groups)) == expected


def test_a_model_without_trainable_parameters_is_refused() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        get_optimizer_params(model, base_lr=1e-3, weight_decay=0.1, no_decay=NoDecayByName())


def test_a_step_moves_each_parameter_by_its_rate() -> None:
    model = _model()
    groups = get_optimizer_params(
        model,
        base_lr=1e-3,
        weight_decay=0.0,
        no_decay=NoDecayOneDim(),
        lr_factor_func=LayerDecay(0.5, DEPTH),
    )
    optimizer = torch.optim.AdamW(groups, lr=7.0, weight_decay=7.0)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    optimizer.step()
    moved = {n: (before[n] - v.detach()).mean().item() for n, v in model.named_parameters()}
    # Adam's first step is the learning rate times the sign of the gradient.
    assert moved[f"{PREFIX}net.pos_embed"] == pytest.approx(1e-3 * 0.5**5, rel=1e-2)
    assert moved[f"{PREFIX}net.blocks.3.norm1.bias"] == pytest.approx(1e-3 * 0.5, rel=1e-2)
    assert moved["head.bias"] == pytest.approx(1e-3, rel=1e-2)


def test_factors_by_name() -> None:
    factor = FactorByName({"init_proposal": 0.25, "init": 2.0})
    assert factor("init_proposal_boxes.weight") == 0.25
    assert factor("head.init.weight") == 2.0
    assert factor("head.weight") == 1.0
    with pytest.raises(ValueError, match=r"factors must not be negative, got \{'a': -1\}"):
        FactorByName({"a": -1})
    with pytest.raises(ValueError, match=r"factors must not be negative, got \{'a': nan\}"):
        FactorByName({"a": float("nan")})


def test_factors_of_rate_and_decay() -> None:
    model = nn.ModuleDict({"slow": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    groups = get_optimizer_params(
        model,
        base_lr=1.0,
        weight_decay=0.5,
        no_decay=NoDecayByName(),
        lr_factor_func=FactorByName({"slow": 0.25}),
        decay_factor_func=FactorByName({"slow": 0.1}),
    )
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found[id(model.slow.weight)] == pytest.approx((0.25, 0.05))
    assert found[id(model.slow.bias)] == (0.25, 0.0)
    assert found[id(model.other.weight)] == (1.0, 0.5)


def test_norms_of_convolutions_decay() -> None:
    """Officially they are called bn or gn, which the rule does not name."""
    rule = NoDecayByName()
    assert not rule("head.cls_subnet.0.norm.weight", torch.zeros(4))
    assert rule("head.cls_subnet.0.norm.bias", torch.zeros(4))
    assert rule("backbone.norm1.weight", torch.zeros(4))


# How the official names of the parameters begin that learn as slowly as the net's embedding.
MASK2FORMER_EMBEDDINGS = tuple(
    f"decode_head.{name}"
    for name in ("mask_embed", "cls_embed", "level_embed", "query_embed", "query_feat")
)


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("mask2former_beit_adapter_base_512_40k_cocostuff10k_ms", 12),
        ("mask2former_beit_adapter_large_640_160k_ade20k_ms", 24),
    ],
)
def test_mask2former_factors_are_the_recipes(
    name: str, depth: int, recipes: dict[str, dict], shared: Path
) -> None:
    rule = recipes[name]["optimizer"]["layer_decay"]
    assert rule["num_layers"] == depth
    odd = Mask2FormerLayerDecay(rule["rate"], depth)
    plain = LayerDecay(rule["rate"], depth)
    shapes = json.loads((shared / "reference" / "keys" / f"{name}.json").read_text())
    official = {key: torch.empty(shape, device="meta") for key, (shape, _) in shapes.items()}
    names = convert_official(official, MASK2FORMER).renamed
    lowest = pytest.approx(rule["scale_id0"], rel=1e-6)
    in_head = {key: ours for key, ours in names.items() if key.startswith("decode_head.")}
    assert len(in_head) > 200
    for key, ours in in_head.items():
        expected = lowest if key.startswith(MASK2FORMER_EMBEDDINGS) else 1
        assert odd(ours) == expected, key
        assert plain(ours) == 1, key
    backbone = [n for n in convert_official(official, MASK2FORMER).tensors if n.startswith("back")]
    # The adapter's own level_embed has the rate of new layers.
    assert odd("backbone.level_embed") == 1
    assert {n: odd(n) for n in backbone} == {n: plain(n) for n in backbone}


def test_a_block_too_many_is_refused() -> None:
    with pytest.raises(ValueError, match="num_layers=2 is too small"):
        Mask2FormerLayerDecay(0.9, 2)("backbone.net.blocks.2.norm1.weight")
