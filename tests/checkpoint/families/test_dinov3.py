"""convert_dinov3 against timm's own filter and the published lists of names."""

import pytest
import timm
import torch
from timm.models.eva import checkpoint_filter_fn
from torch import Tensor

from vitadapter.checkpoint.families.dinov3 import convert_dinov3
from vitadapter.modeling.backbone import TimmViT

DIM, HIDDEN = 48, {False: 192, True: 288}
SMALL = dict(embed_dim=DIM, num_heads=4)


def make_net(name: str, depth: int = 2) -> TimmViT:
    """The whole of a DINOv3, its final norm included."""
    net = TimmViT(name, **SMALL, depth=depth)
    net.add_final_norm()
    return net


def _shapes_of_a_block(gated: bool) -> dict[str, tuple[int, ...]]:
    hidden = HIDDEN[gated]
    shapes = {
        "norm1.weight": (DIM,),
        "norm1.bias": (DIM,),
        "norm2.weight": (DIM,),
        "norm2.bias": (DIM,),
        "attn.qkv.weight": (3 * DIM, DIM),
        "attn.qkv.bias": (3 * DIM,),
        "attn.qkv.bias_mask": (3 * DIM,),
        "attn.proj.weight": (DIM, DIM),
        "attn.proj.bias": (DIM,),
        "ls1.gamma": (DIM,),
        "ls2.gamma": (DIM,),
    }
    if gated:
        shapes |= {f"mlp.w{i}.weight": (hidden, DIM) for i in (1, 2)} | {"mlp.w1.bias": (hidden,)}
        shapes |= {"mlp.w2.bias": (hidden,), "mlp.w3.weight": (DIM, hidden), "mlp.w3.bias": (DIM,)}
    else:
        shapes |= {"mlp.fc1.weight": (hidden, DIM), "mlp.fc1.bias": (hidden,)}
        shapes |= {"mlp.fc2.weight": (DIM, hidden), "mlp.fc2.bias": (DIM,)}
    return shapes


def original(depth: int = 2, gated: bool = False) -> dict[str, Tensor]:
    """Names of the released files, random values; keys have a bias that the mask removes."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, DIM),
        "storage_tokens": (1, 4, DIM),
        "mask_token": (1, DIM),
        "patch_embed.proj.weight": (DIM, 3, 16, 16),
        "patch_embed.proj.bias": (DIM,),
        "rope_embed.periods": (DIM // 4 // 4,),
        "norm.weight": (DIM,),
        "norm.bias": (DIM,),
    }
    for i in range(depth):
        shapes |= {f"blocks.{i}.{n}": shape for n, shape in _shapes_of_a_block(gated).items()}
    state = {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    for name in state:
        if name.endswith("bias_mask"):
            state[name] = torch.ones(3 * DIM)
            state[name][DIM : 2 * DIM] = 0
    return state


def as_transformers(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The same weights as transformers' DINOv3ViTModel calls them."""
    named = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": state["mask_token"][:, None],
        "embeddings.register_tokens": state["storage_tokens"],
        "embeddings.patch_embeddings.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.bias": state["patch_embed.proj.bias"],
        "norm.weight": state["norm.weight"],
        "norm.bias": state["norm.bias"],
    }
    gated = any("mlp.w1" in name for name in state)
    mlp = {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"}
    for i in range(sum(name.endswith("ls1.gamma") for name in state)):
        ours, theirs = f"{prefix}layer.{i}.", f"blocks.{i}."
        for part, rows in zip("qkv", state[f"{theirs}attn.qkv.weight"].chunk(3), strict=True):
            named[f"{ours}attention.{part}_proj.weight"] = rows
        query, _, value = state[f"{theirs}attn.qkv.bias"].chunk(3)
        named[f"{ours}attention.q_proj.bias"] = query
        named[f"{ours}attention.v_proj.bias"] = value
        for kind in ("weight", "bias"):
            named[f"{ours}attention.o_proj.{kind}"] = state[f"{theirs}attn.proj.{kind}"]
            for norm in ("norm1", "norm2"):
                named[f"{ours}{norm}.{kind}"] = state[f"{theirs}{norm}.{kind}"]
            for new, old in (mlp if gated else {"up_proj": "fc1", "down_proj": "fc2"}).items():
                named[f"{ours}mlp.{new}.{kind}"] = state[f"{theirs}mlp.{old}.{kind}"]
        for j in (1, 2):
            named[f"{ours}layer_scale{j}.lambda1"] = state[f"{theirs}ls{j}.gamma"]
    return named


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


def test_the_layout_of_this_test_is_the_published_one():
    assert len(original(depth=12)) == 188
    assert len(original(depth=24)) == 368


@pytest.mark.parametrize("gated", [False, True])
def test_equals_timms_filter_and_fits_the_net(gated):
    name = "vit_small_plus_patch16_dinov3_qkvb" if gated else "vit_small_patch16_dinov3_qkvb"
    settings = SMALL | dict(depth=2)
    model = timm.create_model(name, num_classes=0, **settings)
    state = original(gated=gated)
    if gated:  # SwiGLU of the "plus" size: 6 * 48 channels
        assert model.blocks[0].mlp.fc1_g.weight.shape == (192, DIM)
        state = {
            n: t[:192] if ".w1." in n or ".w2." in n else t[:, :192] if ".w3.w" in n else t
            for n, t in state.items()
        }
    expected = checkpoint_filter_fn(dict(state), model)
    found = convert_dinov3(state).tensors
    assert_same(found, expected)
    make_net(name).load_state_dict(found)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("gated", [False, True])
def test_transformers_names_give_the_same_tensors(gated, prefix):
    state = original(gated=gated)
    found = convert_dinov3(as_transformers(state, prefix)).tensors
    assert_same(found, convert_dinov3(state).tensors)


def test_timms_names_stay_as_they_are():
    net = make_net("vit_small_patch16_dinov3_qkvb")
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(t.shape, generator=generator) for n, t in net.state_dict().items()}
    assert_same(convert_dinov3(state).tensors, state)


def test_nothing_is_changed_in_place():
    state = original()
    before = {name: tensor.clone() for name, tensor in state.items()}
    convert_dinov3(state)
    assert_same(state, before)


def test_biases_that_are_all_zero_are_left_out():
    """Most released models have such biases; timm's names without "qkvb" have no place for them."""
    state = original()
    for name, tensor in state.items():
        if name.endswith("qkv.bias"):
            tensor.zero_()
    net = make_net("vit_small_patch16_dinov3")
    net.load_state_dict(convert_dinov3(state).tensors)
    state["blocks.1.attn.qkv.bias"][-1] = 1e-3
    assert "blocks.0.attn.q_bias" in convert_dinov3(state).tensors


def test_converted_weights_give_timms_outputs():
    state = original()
    model = timm.create_model("vit_small_patch16_dinov3_qkvb", num_classes=0, depth=2, **SMALL)
    model.load_state_dict(checkpoint_filter_fn(dict(state), model))
    net = make_net("vit_small_patch16_dinov3_qkvb")
    net.load_state_dict(convert_dinov3(as_transformers(state)).tensors)
    model, net = model.eval().double(), net.eval().double()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    x, prefix = net.forward_blocks(*net.embed(images), 0, 2)
    found = net.norm(torch.cat([prefix, x.flatten(1, 2)], dim=1))
    torch.testing.assert_close(found, model.forward_features(images), rtol=1e-9, atol=1e-9)


def test_a_bias_of_keys_is_refused():
    state = {name: t for name, t in original().items() if not name.endswith("bias_mask")}
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv\.bias must be 0 for keys"):
        convert_dinov3(state)


@pytest.mark.parametrize("name", ["blocks.1.attn.qkv.bias_mask", "blocks.1.attn.qkv.bias"])
def test_a_mask_that_was_never_set_is_refused(name):
    state = original()
    state[name] = torch.full((3 * DIM,), float("nan"))
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qkv\.bias and its mask must be finite"):
        convert_dinov3(state)


def test_other_checkpoints_are_refused():
    with pytest.raises(ValueError, match=r"a DINOv3 ViT has .*reg_token.*missing among 1 entries"):
        convert_dinov3({"conv1.weight": torch.zeros(1)})
    dinov2 = {name: t for name, t in original().items() if name != "storage_tokens"}
    with pytest.raises(ValueError, match=r"\['reg_token'\] are missing"):
        convert_dinov3(dinov2)
    half = as_transformers(original())
    del half["layer.1.attention.k_proj.weight"]
    with pytest.raises(ValueError, match=r"k_proj\.weight'\] are missing"):
        convert_dinov3(half)
