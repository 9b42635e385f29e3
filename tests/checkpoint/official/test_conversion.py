import functools
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from vitadapter.checkpoint import convert_official_backbone
from vitadapter.modeling.backbone import BEiT, UniPerceiver, ViT, ViTAdapter, ViTBaseline

# Kinds of backbones without a net here would be missed by a list of names: take them all.
NETS = {
    "ViTAdapter": "vit",
    "ViTBaseline": "vit",
    "BEiTAdapter": "beit",
    "BEiTBaseline": "beit",
    "UniPerceiverAdapter": "uni_perceiver",
}
# Semantic FPN has key lists but no recipes: recipes with the same backbone.
SEM_FPN = {
    "semfpn_tiny": "upernet_deit_adapter_tiny_512_160k_ade20k",
    "semfpn_small": "upernet_deit_adapter_small_512_160k_ade20k",
    "semfpn_base": "upernet_deit_adapter_base_512_160k_ade20k",
    "semfpn_augreg_base": "upernet_augreg_adapter_base_512_160k_ade20k",
    "semfpn_augreg_large": "upernet_augreg_adapter_large_512_160k_ade20k",
    "semfpn_uniperceiver_large": "upernet_uniperceiver_adapter_large_512_160k_ade20k",
}
# What the official nets call their blocks.
BLOCKS = {"vit": "blocks.", "beit": "blocks.", "uni_perceiver": "layers."}


def _names() -> list[str]:
    """Recipes with a list of keys of their own; one stands for all when shared data is absent."""
    index = Path(__file__).resolve().parents[4] / "shared" / "reference" / "keys" / "index.json"
    if not index.is_file():
        return ["mask_rcnn_deit_adapter_tiny_fpn_1x_coco"]
    files = {entry["file"]: name for name, entry in json.loads(index.read_text()).items()}
    return sorted(files.values())


def _vit(backbone: dict[str, object]) -> ViT:
    windows = [i for i, size in enumerate(backbone["window_size"]) if size is not None]
    return ViT(
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


def _beit(backbone: dict[str, object]) -> BEiT:
    large = max(size or 0 for size in backbone["window_size"])
    small = [i for i, size in enumerate(backbone["window_size"]) if size == 14]
    return BEiT(
        img_size=backbone["img_size"],
        embed_dim=backbone["embed_dim"],
        depth=backbone["depth"],
        num_heads=backbone["num_heads"],
        use_cls_token=backbone["cls_token"],
        window_size=14 if small else 0,
        window_block_indexes=small,
        global_window_size=large,
        layer_scale_init=backbone["vit_layer_scale_init"],
    )


def _uni_perceiver(backbone: dict[str, object]) -> UniPerceiver:
    windows = [i for i, size in enumerate(backbone["window_size"]) if size is not None]
    return UniPerceiver(
        embed_dim=backbone["embed_dim"],
        depth=backbone["depth"],
        num_heads=backbone["num_heads"],
        window_size=14,
        window_block_indexes=windows,
        pretrain_img_size=backbone["pretrain_size"],
    )


@functools.cache
def _build(backbone_json: str) -> nn.Module:
    """Our backbone for an official recipe's, without memory."""
    backbone = json.loads(backbone_json)
    official_class = backbone["official_class"]
    build = {"vit": _vit, "beit": _beit, "uni_perceiver": _uni_perceiver}[NETS[official_class]]
    with torch.device("meta"):
        net = build(backbone)
        if official_class == "BEiTBaseline":
            blocks = backbone["out_indices"]
            return ViTBaseline(net, block_indexes=blocks, norm_layer=None, norm="SyncBN")
        if official_class == "ViTBaseline":
            return ViTBaseline(net, block_indexes=backbone["out_indices"])
        adapter = backbone["adapter"]
        return ViTAdapter(
            net,
            interaction_indexes=adapter["interaction_indexes"],
            conv_dim=adapter["conv_inplane"],
            num_points=adapter["n_points"],
            deform_num_heads=adapter["deform_num_heads"],
            deform_ratio=adapter["deform_ratio"],
            ffn_ratio=adapter["cffn_ratio"] if adapter["with_cffn"] else 0.0,
            num_extra_extractors=adapter["num_extra_extractors"],
            vit_feature=None if len(adapter["interaction_indexes"]) == 1 else "final",
        )


@pytest.fixture(scope="module")
def backbones(recipes: dict[str, dict]) -> dict[str, dict[str, object]]:
    return {name: recipe["backbone"] for name, recipe in recipes.items()}


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


@pytest.mark.parametrize("name", _names())
def test_names_and_shapes_are_ours(
    name: str, shared: Path, backbones: dict[str, dict[str, object]]
) -> None:
    official = _backbone_of(_official_keys(shared, name))
    converted = convert_official_backbone(official).tensors
    backbone = backbones[SEM_FPN.get(name, name)].copy()
    # Many recipes differ in these alone.
    for key in ("drop_path_rate", "activation_checkpointing"):
        del backbone[key]
    model = _build(json.dumps(backbone))
    assert {key: tensor.shape for key, tensor in converted.items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }
    # Nothing is lost but what our net computes, and no tensor is used twice.
    lost = {id(tensor) for tensor in official.values()} - {id(t) for t in converted.values()}
    assert lost == {id(t) for key, t in official.items() if key.endswith("relative_position_index")}
    index = json.loads((shared / "reference" / "keys" / "index.json").read_text())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert round(parameters / 1e6, 3) == index[name]["backbone_M"]


def test_a_whole_official_detector_is_refused(shared: Path) -> None:
    checkpoint = _official_keys(shared, "mask_rcnn_deit_adapter_tiny_fpn_1x_coco")
    with pytest.raises(ValueError, match=rf"got {len(checkpoint)} entries such as \['backbone"):
        convert_official_backbone(checkpoint)


def _small_net(kind: str) -> nn.Module:
    if kind == "beit":
        return BEiT(64, embed_dim=32, depth=4, num_heads=2, use_cls_token=True)
    if kind == "uni_perceiver":
        return UniPerceiver(embed_dim=32, depth=4, num_heads=2)
    return ViT(embed_dim=32, depth=4, num_heads=2, layer_scale_init=1.0)


@pytest.mark.parametrize("kind", ["vit", "beit", "uni_perceiver"])
@pytest.mark.parametrize("wrapper", ["adapter", "baseline"])
def test_puts_the_entries_of_the_net_under_net(kind: str, wrapper: str) -> None:
    """The official classes subclass their net: the same names without `net.`."""
    net = _small_net(kind)
    if wrapper == "baseline":
        ours = ViTBaseline(net)
    else:
        ours = ViTAdapter(net, conv_dim=8, deform_num_heads=2)
    state = ours.state_dict()
    official = {
        key.removeprefix("net.").replace("blocks.", BLOCKS[kind]): tensor
        for key, tensor in state.items()
    }
    before = dict(official)
    assert len(official) == len(state) > len(net.state_dict())
    converted = convert_official_backbone(official).tensors
    assert list(converted) == list(state)
    assert all(converted[key] is state[key] for key in state)
    assert official == before
    ours.load_state_dict(converted, strict=True)


@pytest.mark.parametrize(
    "names",
    [
        (),
        # a whole detector's, ours
        ("backbone.patch_embed.proj.weight", "backbone.pos_embed", "backbone.level_embed"),
        ("net.patch_embed.proj.weight", "net.pos_embed", "level_embed"),
        # half an official backbone
        ("patch_embed.proj.weight", "level_embed"),
        ("patch_embed.proj.weight", "layers.0.norm1.weight", "level_embed"),
        ("pos_embed", "blocks.0.attn.qkv.weight", "level_embed"),
        # pre-trained nets: DeiT, BEiT, Uni-Perceiver
        ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight", "norm.weight"),
        ("patch_embed.proj.weight", "blocks.0.attn.relative_position_bias_table"),
        ("visual_embed.patch_embed.proj.weight", "layers.0.self_attn.in_proj.weight"),
        ("stem.conv1.weight", "res2.0.conv1.weight"),
    ],
)
def test_other_state_dicts_are_refused(names: tuple[str, ...]) -> None:
    state = {name: torch.zeros(1) for name in names}
    with pytest.raises(ValueError, match=r"an official backbone has one of level_embed.*got \d+"):
        convert_official_backbone(state)
