"""AugReg's own names, against timm's loader of these files."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from vitadapter.checkpoint.families import recognise
from vitadapter.checkpoint.families.augreg import convert_augreg
from vitadapter.checkpoint.loading import plan_load
from vitadapter.checkpoint.reading import read_state_dict
from vitadapter.modeling.backbone import ViT, ViTAdapter

DIM, HEADS, DEPTH, CLASSES = 24, 3, 2, 5


def make_arrays(prefix: str = "") -> dict[str, np.ndarray]:
    """A small AugReg checkpoint: names and shapes as published."""
    block = {
        "LayerNorm_0/scale": (DIM,),
        "LayerNorm_0/bias": (DIM,),
        "LayerNorm_2/scale": (DIM,),
        "LayerNorm_2/bias": (DIM,),
        "MultiHeadDotProductAttention_1/out/kernel": (HEADS, DIM // HEADS, DIM),
        "MultiHeadDotProductAttention_1/out/bias": (DIM,),
        "MlpBlock_3/Dense_0/kernel": (DIM, 4 * DIM),
        "MlpBlock_3/Dense_0/bias": (4 * DIM,),
        "MlpBlock_3/Dense_1/kernel": (4 * DIM, DIM),
        "MlpBlock_3/Dense_1/bias": (DIM,),
    }
    for part in ("query", "key", "value"):
        path = f"MultiHeadDotProductAttention_1/{part}"
        block |= {f"{path}/kernel": (DIM, HEADS, DIM // HEADS), f"{path}/bias": (HEADS, 8)}
    shapes = {
        "embedding/kernel": (16, 16, 3, DIM),
        "embedding/bias": (DIM,),
        "cls": (1, 1, DIM),
        "Transformer/posembed_input/pos_embedding": (1, 17, DIM),
        "Transformer/encoder_norm/scale": (DIM,),
        "Transformer/encoder_norm/bias": (DIM,),
        "head/kernel": (DIM, CLASSES),
        "head/bias": (CLASSES,),
    }
    for i in range(DEPTH):
        shapes |= {f"Transformer/encoderblock_{i}/{name}": size for name, size in block.items()}
    rng = np.random.default_rng(0)
    return {
        prefix + name: rng.standard_normal(size, dtype=np.float32) for name, size in shapes.items()
    }


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_equals_timms_loader(prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "augreg.npz"
    optimizer = {"opt/state/step": np.ones(())} if prefix else {}
    np.savez(path, **make_arrays(prefix), **optimizer)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=64,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=CLASSES,
    )
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    model.load_pretrained(str(path), prefix=prefix)
    state_dict = read_state_dict(path)
    assert recognise(state_dict).name == "augreg"
    conversion = convert_augreg(state_dict)
    expected = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")
    }
    assert conversion.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.any(), name
        assert torch.equal(conversion.tensors[name], tensor), name
    # Nothing is left unsaid.
    assert conversion.renamed.keys() | conversion.dropped.keys() == state_dict.keys()
    assert {name.removeprefix(prefix) for name in conversion.dropped} == {
        "head/kernel",
        "head/bias",
        *optimizer,
    }


def test_a_load_into_a_net_with_layer_scale(tmp_path: Path) -> None:
    """Files without it are those of models whose blocks are added as they are."""
    np.savez(tmp_path / "w.npz", **make_arrays())
    size = {"embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "pretrain_img_size": 64}
    net = ViT(**size, layer_scale_init=1e-5)
    model = ViTAdapter(net, num_interactions=1, conv_dim=8, deform_num_heads=HEADS)
    planned = plan_load(model, read_state_dict(tmp_path / "w.npz"), "w.npz")
    planned.apply(model)
    assert planned.report.family == "augreg"
    assert planned.report.net_share == 1.0
    assert all((block.gamma1 == 1).all() for block in model.net.blocks)


def test_bad_input() -> None:
    arrays = {name: torch.from_numpy(array) for name, array in make_arrays().items()}
    with pytest.raises(ValueError, match=r"has embedding/kernel, .* among 1 entries"):
        convert_augreg({"cls": arrays["cls"]})
    del arrays["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/bias"]
    with pytest.raises(ValueError, match=r"encoderblock_1/.*/key/bias, but it is missing"):
        convert_augreg(arrays)


def test_an_unknown_entry_is_kept_for_the_report() -> None:
    arrays = {name: torch.from_numpy(array) for name, array in make_arrays().items()}
    extra = {"Transformer/encoderblock_0/Gate/kernel": torch.ones(1)}
    assert convert_augreg(arrays | extra).tensors.keys() >= extra.keys()
