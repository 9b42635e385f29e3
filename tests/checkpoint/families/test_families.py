"""Plain ViTs of every family inside other models."""

from functools import partial

import pytest
import timm
import torch
from torch import Tensor

from vitadapter.checkpoint.families import recognise

PREFIXES = [
    *("backbone.", "encoder.", "model.", "visual.", "student.", "teacher."),
    *("model.backbone.", "teacher.backbone.", "model.visual.trunk.", "model.encoder.vit."),
]
make = partial(timm.create_model, embed_dim=32, depth=2, num_heads=2)


def make_augreg() -> dict[str, Tensor]:
    return {"embedding/kernel": torch.ones(16, 16, 3, 8), "cls": torch.ones(1, 1, 8)}


def make_mae() -> dict[str, Tensor]:
    state = make("vit_tiny_patch16_224").state_dict()
    return state | {"decoder_embed.weight": torch.ones(1), "mask_token": torch.ones(1)}


def make_uni_perceiver() -> dict[str, Tensor]:
    names = ("visual_embed.patch_embed.proj.weight", "layers.0.self_attn.in_proj.weight")
    return {name: torch.ones(1) for name in names}


FAMILIES = {
    "augreg": make_augreg,
    "beit": lambda: make("beit_base_patch16_224").state_dict(),
    "dinov2": lambda: make("vit_small_patch14_dinov2").state_dict(),
    "dinov3": lambda: make("vit_small_patch16_dinov3").state_dict(),
    "eva02": lambda: make("eva02_base_patch14_224").state_dict(),
    "mae": make_mae,
    "timm_vit": lambda: make("deit_tiny_patch16_224").state_dict(),
    "uni_perceiver": make_uni_perceiver,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_under_every_prefix(name: str) -> None:
    state = FAMILIES[name]()
    expected = recognise(state)
    assert expected.name == name
    conversion = expected.converters[0](state)
    for prefix in PREFIXES:
        other = {f"{prefix}{key}": tensor for key, tensor in state.items()}
        other["logit_scale"] = torch.ones(1)
        found = recognise(other)
        assert found.name == name
        inner = found.converters[0](other)
        assert inner.tensors.keys() == conversion.tensors.keys()
        assert inner.implied == conversion.implied
        dropped = {f"{prefix}{key}": why for key, why in conversion.dropped.items()}
        assert inner.dropped == dropped | {"logit_scale": "not part of the plain ViT"}
        kept = [key for key in state if key in conversion.tensors]
        assert all(inner.renamed[prefix + key] == key for key in kept)


def test_the_teacher_comes_before_the_student() -> None:
    """DINOv2's training state has both."""
    state = make("vit_small_patch14_dinov2").state_dict()
    both = {f"student.backbone.{name}": tensor + 1 for name, tensor in state.items()}
    both |= {f"teacher.backbone.{name}": tensor for name, tensor in state.items()}
    tensors = recognise(both).converters[0](both).tensors
    assert torch.equal(tensors["blocks.0.norm1.weight"], state["blocks.0.norm1.weight"])


def test_parts_of_other_models_are_no_plain_vit() -> None:
    for prefix in ("neck.", "backbone.layer1.", "decoder."):
        state = {f"{prefix}{name}": tensor for name, tensor in FAMILIES["timm_vit"]().items()}
        with pytest.raises(ValueError, match="no known family"):
            recognise(state)


def test_a_chain_of_prefixes_without_end() -> None:
    state = {"model." * 100_000 + "a": torch.ones(1)}
    with pytest.raises(ValueError, match="no known family"):
        recognise(state)
