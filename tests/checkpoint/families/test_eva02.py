"""convert_eva02 against timm's own filter and the published lists of names."""

import re

import pytest
import timm
import torch
from timm.models.eva import checkpoint_filter_fn
from torch import Tensor

from vitadapter.checkpoint.families import recognise
from vitadapter.checkpoint.families.eva02 import convert_eva02
from vitadapter.modeling.backbone import TimmViT

DIM = 48
SMALL = dict(embed_dim=DIM, num_heads=4)
# Hidden channels of the SwiGLU: int(48 * 4 * 2 / 3).
HIDDEN = 128
FUSED, SEPARATE = "eva02_small_patch14_224", "eva02_base_patch14_224"


def _attention_and_mlp(separate: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"attn.q_bias": (DIM,), "attn.v_bias": (DIM,)}
    shapes |= {"mlp.w3.weight": (DIM, HIDDEN), "mlp.w3.bias": (DIM,)}
    if not separate:
        shapes |= {"attn.qkv.weight": (3 * DIM, DIM)}
        return shapes | {"mlp.w12.weight": (2 * HIDDEN, DIM), "mlp.w12.bias": (2 * HIDDEN,)}
    shapes |= {f"attn.{part}_proj.weight": (DIM, DIM) for part in "qkv"}
    shapes |= {f"mlp.w{i}.weight": (HIDDEN, DIM) for i in (1, 2)}
    shapes |= {f"mlp.w{i}.bias": (HIDDEN,) for i in (1, 2)}
    return shapes | {f"mlp.ffn_ln.{kind}": (HIDDEN,) for kind in ("weight", "bias")}


def original(separate: bool, depth: int = 2) -> dict[str, Tensor]:
    """Names of the authors' files of masked image modelling, random values."""
    generator = torch.Generator().manual_seed(0)
    rope = {f"rope.freqs_{f}": (256, DIM // 4) for f in ("cos", "sin")}
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, DIM),
        "mask_token": (1, 1, DIM),
        "pos_embed": (1, 257, DIM),
        "patch_embed.proj.weight": (DIM, 3, 16, 16),
        "patch_embed.proj.bias": (DIM,),
        "norm.weight": (DIM,),
        "norm.bias": (DIM,),
        "lm_head.weight": (8, DIM),
        "lm_head.bias": (8,),
    } | rope
    block = {f"norm{i}.{kind}": (DIM,) for i in (1, 2) for kind in ("weight", "bias")}
    block |= {"attn.proj.weight": (DIM, DIM), "attn.proj.bias": (DIM,)}
    block |= {f"attn.{name}": shape for name, shape in rope.items()}
    block |= _attention_and_mlp(separate)
    for i in range(depth):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


def make_net(name: str) -> TimmViT:
    """The whole of an EVA-02, its final norm included."""
    net = TimmViT(name, **SMALL, depth=2)
    net.add_final_norm()
    return net


def test_the_layout_of_this_test_is_the_published_one():
    assert len(original(separate=False, depth=12)) == 191
    assert len(original(separate=True, depth=12)) == 263
    assert len(original(separate=True, depth=24)) == 515


@pytest.mark.parametrize(("name", "separate"), [(FUSED, False), (SEPARATE, True)])
def test_equals_timms_filter_and_fits_the_net(name, separate):
    settings = SMALL | dict(depth=2)
    model = timm.create_model(name, num_classes=0, patch_size=16, img_size=256, **settings)
    state = original(separate)
    expected = checkpoint_filter_fn(dict(state), model)
    found = convert_eva02(state).tensors
    assert_same(found, {n.replace("fc_norm.", "norm."): t for n, t in expected.items()})
    make_net(name).load_state_dict(found)


@pytest.mark.parametrize("name", [FUSED, SEPARATE])
def test_timms_names_stay_as_they_are(name):
    net = make_net(name)
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(t.shape, generator=generator) for n, t in net.state_dict().items()}
    rest = {"head.weight": torch.ones(2, DIM)}
    assert_same(convert_eva02(state | rest).tensors, state)
    timms = {re.sub("^norm", "fc_norm", name): tensor for name, tensor in state.items()}
    assert_same(convert_eva02(timms).tensors, state)


@pytest.mark.parametrize("prefix", ["visual.", "visual.trunk."])
def test_the_image_tower_of_clip(prefix):
    name = "eva02_base_patch16_clip_224"
    settings = SMALL | dict(depth=2)
    model = timm.create_model(name, num_classes=0, **settings)
    state = original(separate=True)
    for i in range(2):  # normalises after attention
        for kind in ("weight", "bias"):
            state[f"blocks.{i}.attn.inner_attn_ln.{kind}"] = torch.randn(DIM)
    state["pos_embed"] = torch.randn(1, 197, DIM)
    tower = {f"{prefix}{n}": t for n, t in state.items() if "lm_head" not in n and "mask" not in n}
    tower["logit_scale"] = torch.zeros(())
    tower["text.token_embedding.weight"] = torch.zeros(4, 4)
    expected = checkpoint_filter_fn(dict(tower), model)
    family = recognise(tower)
    assert family.name == "eva02"
    found = family.converters[0](tower).tensors
    assert_same(found, expected)
    make_net(name).load_state_dict(found)


def test_converted_weights_give_timms_outputs():
    state = original(separate=True)
    settings = SMALL | dict(depth=2)
    model = timm.create_model(
        SEPARATE, num_classes=0, patch_size=16, img_size=256, dynamic_img_size=True, **settings
    )
    model.load_state_dict(checkpoint_filter_fn(dict(state), model))
    net = make_net(SEPARATE)
    net.load_state_dict(convert_eva02(state).tensors)
    model, net = model.eval().double(), net.eval().double()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    x, prefix = net.forward_blocks(*net.embed(images), 0, 2)
    found = torch.cat([prefix, x.flatten(1, 2)], dim=1)
    torch.testing.assert_close(found, model.forward_features(images), rtol=1e-9, atol=1e-9)


def test_nothing_is_changed_in_place():
    state = original(separate=True)
    before = {name: tensor.clone() for name, tensor in state.items()}
    convert_eva02(state)
    assert_same(state, before)


def test_other_checkpoints_are_refused():
    with pytest.raises(ValueError, match=r"an EVA-02 ViT has .*missing among 1 entries"):
        convert_eva02({"conv1.weight": torch.zeros(1)})
    state = original(separate=True)
    del state["pos_embed"]
    with pytest.raises(ValueError, match=r"\['pos_embed'\] are missing"):
        convert_eva02(state)
