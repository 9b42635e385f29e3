"""Plain ViTs: files as timm's own models write them."""

import pytest
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from vitadapter.checkpoint.families import FAMILIES, find_family, recognise
from vitadapter.checkpoint.families.plain_vit import (
    convert_dinov2,
    convert_dinov2_to_timm,
    convert_timm_vit,
)
from vitadapter.modeling.backbone import ViT

SIZE = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def make_timm(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **SIZE, **arguments)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def mae_state() -> dict[str, Tensor]:
    state = make_timm("vit_tiny_patch16_224", num_classes=0).state_dict()
    state["pos_embed"][:, 0] = 0.0  # sine positions start with zeros for the class token
    return state


DECODER = {
    "mask_token": torch.ones(1, 1, 8),
    "decoder_embed.weight": torch.ones(8, 32),
    "decoder_pos_embed": torch.ones(1, 197, 8),
    "decoder_blocks.0.norm1.weight": torch.ones(8),
    "decoder_norm.weight": torch.ones(8),
    "decoder_pred.weight": torch.ones(3, 8),
}


@pytest.mark.parametrize(
    ("name", "family", "layer_scale_init"),
    [
        ("deit_tiny_patch16_224", "timm_vit", None),
        ("vit_tiny_patch16_224", "timm_vit", None),
        ("vit_small_patch14_dinov2", "dinov2", 1.0),
    ],
)
def test_fills_our_vit(name: str, family: str, layer_scale_init: float | None) -> None:
    """Only what our ViT does without is left over, under its old name."""
    state = make_timm(name, img_size=224, patch_size=16).state_dict()
    before = dict(state)
    found = recognise(state)
    assert found.name == family
    conversion = found.converters[0](state)
    net = ViT(**SIZE, layer_scale_init=layer_scale_init)
    incompatible = net.load_state_dict(conversion.tensors, strict=False)
    assert incompatible.missing_keys == []
    assert incompatible.unexpected_keys == ["cls_token", "norm.weight", "norm.bias"]
    assert conversion.dropped.keys() == {"head.weight", "head.bias"} & state.keys()
    assert len(conversion.tensors) + len(conversion.dropped) == len(state)
    assert state == before


def test_dinov2_in_both_namings() -> None:
    state = make_timm("vit_small_patch14_dinov2").state_dict()
    ours, timms, _ = (convert(state) for convert in find_family("dinov2").converters)
    assert ours.tensors["blocks.1.gamma2"] is state["blocks.1.ls2.gamma"]
    assert ours.renamed == {
        f"blocks.{i}.ls{j}.gamma": f"blocks.{i}.gamma{j}" for i in (0, 1) for j in (1, 2)
    }
    assert timms.renamed == {}
    assert timms.tensors.keys() == state.keys()


def test_dinov2_with_registers_as_timm_reads_it() -> None:
    """The original names; timm adds the position of the class token to the token."""
    original = make_timm("vit_small_patch14_dinov2").state_dict()
    original |= {"register_tokens": torch.randn(1, 4, 32), "mask_token": torch.zeros(1, 32)}
    model = timm.create_model("vit_small_patch14_reg4_dinov2", **SIZE)
    expected = checkpoint_filter_fn(dict(original), model)
    conversion = convert_dinov2_to_timm(original)
    assert conversion.tensors.keys() == expected.keys()
    for name, tensor in conversion.tensors.items():
        torch.testing.assert_close(tensor, expected[name])
    # Our ViT has no registers: the load drops them.
    assert "register_tokens" in convert_dinov2(original).tensors


@pytest.mark.parametrize("decoder", [{}, DECODER])
def test_mae(decoder: dict[str, Tensor]) -> None:
    state = mae_state()
    assert recognise(state | decoder).name == "mae"
    conversion = convert_timm_vit(state | decoder)
    assert conversion.dropped.keys() == decoder.keys()
    net = ViT(**SIZE)
    net.add_final_norm()
    net.load_state_dict(
        {name: tensor for name, tensor in conversion.tensors.items() if name != "cls_token"}
    )


@pytest.mark.parametrize("convert", [convert_timm_vit, convert_dinov2, convert_dinov2_to_timm])
@pytest.mark.parametrize(
    "names",
    [
        (),
        ("conv1.weight", "layer1.0.conv1.weight"),
        ("patch_embed.proj.weight", "pos_embed"),
        ("net.patch_embed.proj.weight", "net.blocks.0.attn.qkv.weight"),
    ],
)
def test_other_state_dicts_are_refused(convert: object, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=rf"a plain ViT has .* among {len(names)} entries"):
        convert({name: torch.ones(1) for name in names})


def test_an_unknown_family_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"2 entries such as \['conv1.*Known: .*vitadapter.*mae"):
        recognise({"conv1.weight": torch.ones(1), "layer1.0.conv1.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"no family 'vgg'\. Known: .*vitadapter"):
        find_family("vgg")
    assert [find_family(family.name) for family in FAMILIES] == list(FAMILIES)
