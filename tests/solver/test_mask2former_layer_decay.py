"""The official oddity is reproduced where it is asked for, and only there."""

import json
from pathlib import Path

import pytest
import torch

from vitadapter.checkpoint import convert_official
from vitadapter.checkpoint.official.layouts import MASK2FORMER
from vitadapter.solver import LayerDecay, Mask2FormerLayerDecay

# What the official names of the parameters in question contain.
ODD = (".mask_embed", ".cls_embed", ".level_embed", ".query_embed", ".query_feat")


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("mask2former_beit_adapter_base_512_40k_cocostuff10k_ms", 12),
        ("mask2former_beit_adapter_large_640_160k_ade20k_ms", 24),
    ],
)
def test_factors_are_the_recipes(
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
        expected = lowest if key.startswith(tuple(f"decode_head{part}" for part in ODD)) else 1
        assert odd(ours) == expected, key
        assert plain(ours) == 1, key
    backbone = [n for n in convert_official(official, MASK2FORMER).tensors if n.startswith("back")]
    # The adapter's own level_embed has the rate of new layers.
    assert odd("backbone.level_embed") == 1
    assert {n: odd(n) for n in backbone} == {n: plain(n) for n in backbone}


def test_a_block_too_many_is_refused() -> None:
    with pytest.raises(ValueError, match="num_layers=2 is too small"):
        Mask2FormerLayerDecay(0.9, 2)("backbone.net.blocks.2.norm1.weight")
