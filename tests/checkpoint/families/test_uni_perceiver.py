import pytest
import torch
from torch import Tensor

from vitadapter.checkpoint import convert_uni_perceiver
from vitadapter.modeling.backbone import UniPerceiver

DIM, DEPTH = 16, 2
# Names and shapes of checkpoint_layouts.md section 1.5, original and converted.
BLOCK = [
    ("gamma_1", "gamma_1", (DIM,)),
    ("gamma_2", "gamma_2", (DIM,)),
    ("self_attn.in_proj_weight", "self_attn.in_proj.weight", (3 * DIM, DIM)),
    ("self_attn.in_proj_bias", "self_attn.in_proj.bias", (3 * DIM,)),
    ("self_attn.out_proj.weight", "self_attn.out_proj.weight", (DIM, DIM)),
    ("self_attn.out_proj.bias", "self_attn.out_proj.bias", (DIM,)),
    ("linear1.weight", "linear1.weight", (4 * DIM, DIM)),
    ("linear1.bias", "linear1.bias", (4 * DIM,)),
    ("linear2.weight", "linear2.weight", (DIM, 4 * DIM)),
    ("linear2.bias", "linear2.bias", (DIM,)),
    ("norm1.weight", "norm1.weight", (DIM,)),
    ("norm1.bias", "norm1.bias", (DIM,)),
    ("norm2.weight", "norm2.weight", (DIM,)),
    ("norm2.bias", "norm2.bias", (DIM,)),
]
EMBED = [
    ("embeddings_norm.weight", "embeddings_norm.weight", (DIM,)),
    ("embeddings_norm.bias", "embeddings_norm.bias", (DIM,)),
    (
        "embeddings_st_pos.spatial_pos_embed.weight",
        "patch_embed.spatial_pos_embed.weight",
        (196, DIM),
    ),
    (
        "embeddings_st_pos.temporal_pos_embed.weight",
        "patch_embed.temporal_pos_embed.weight",
        (8, DIM),
    ),
    ("embeddings.weight", "patch_embed.proj.weight", (DIM, 3, 16, 16)),
    ("embeddings.bias", "patch_embed.proj.bias", (DIM,)),
]


def _files() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same weights under the original and under the converted names."""
    names = [
        (f"fused_encoder.layers.{i}.{old}", f"layers.{i}.{new}", shape)
        for i in range(DEPTH)
        for old, new, shape in BLOCK
    ]
    names += [(f"video_embed.{old}", f"visual_embed.{new}", shape) for old, new, shape in EMBED]
    tensors = [torch.randn(shape) for _, _, shape in names]
    original = {old: tensor for (old, _, _), tensor in zip(names, tensors, strict=True)}
    converted = {new: tensor for (_, new, _), tensor in zip(names, tensors, strict=True)}
    original |= {
        "token_embed.embeddings.weight": torch.zeros(9, DIM),
        "loss_prepare.logit_scale": torch.zeros(()),
        "fused_encoder.norm.weight": torch.zeros(DIM),
        "type_embed.weight": torch.zeros(2, DIM),
    }
    return original, converted | {"norm.weight": torch.zeros(DIM)}


@pytest.mark.parametrize("which", [0, 1], ids=["original", "converted"])
def test_fills_the_net(which: int) -> None:
    files = _files()
    state, reference = files[which], files[1]
    before = dict(state)
    net = UniPerceiver(embed_dim=DIM, depth=DEPTH, num_heads=2)
    found = convert_uni_perceiver(state).tensors
    assert state == before
    net.load_state_dict(found, strict=True)
    for name, tensor in found.items():
        assert tensor is reference[name.replace("blocks.", "layers.")]


def test_what_was_converted_is_taken_again() -> None:
    """As `scripts/convert_checkpoint.py` writes it."""
    ours = convert_uni_perceiver(_files()[0]).tensors
    again = convert_uni_perceiver(ours).tensors
    assert again.keys() == ours.keys()
    assert all(again[name] is ours[name] for name in ours)


@pytest.mark.parametrize(
    "missing", ["visual_embed.patch_embed.proj.weight", "layers.0.self_attn.in_proj.weight"]
)
def test_what_is_no_uni_perceiver_is_refused(missing: str) -> None:
    state = _files()[1]
    del state[missing]
    with pytest.raises(ValueError, match="a pre-trained Uni-Perceiver has"):
        convert_uni_perceiver(state)


def test_an_official_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no pyramid .*\[.level_embed.\] are too many"):
        convert_uni_perceiver(_files()[1] | {"level_embed": torch.zeros(3, DIM)})
