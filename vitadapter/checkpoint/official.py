"""Checkpoints of the official ViT-Adapter release (mmcv state dicts)."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

__all__ = ["convert_official_backbone", "export_official_backbone"]

# The pyramid's own entries: of the adapters, of the plain-ViT baseline, of the BEiT baseline.
_PYRAMIDS = ("level_embed", "up1.0.weight", "fpn1.0.weight")
# Indexes into a bias table, which follow from its shape.
_DROPPED = ".relative_position_index"


class _Family(NamedTuple):
    """The nets of the official backbones, which subclass them: ours wrap them.

    Attributes:
        name: for messages.
        required: entries that only this family has all of.
        prefixes: starts of the net's own names and what they become.
    """

    name: str
    required: tuple[str, ...]
    prefixes: dict[str, str]


_FAMILIES = (
    _Family(
        "plain ViT",
        ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"),
        {name: f"net.{name}" for name in ("patch_embed.", "pos_embed", "blocks.")},
    ),
    _Family(
        "BEiT",
        ("patch_embed.proj.weight", "blocks.0.attn.relative_position_bias_table"),
        {name: f"net.{name}" for name in ("patch_embed.", "cls_token", "blocks.")}
        | {"fpn1.": "up1.", "fpn2.0.": "up2."},
    ),
    _Family(
        "Uni-Perceiver",
        ("visual_embed.patch_embed.proj.weight", "layers.0.self_attn.in_proj.weight"),
        {"visual_embed.": "net.visual_embed.", "layers.": "net.blocks."},
    ),
)


def convert_official_backbone(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official backbone to ``ViTAdapter`` or ``ViTBaseline`` over its net.

    The official backbones are subclasses of their net (a plain ViT, BEiT or Uni-Perceiver), ours
    wrap it: the net's entries move under ``net.``, the BEiT baseline's deconvolutions to the
    plain-ViT baseline's names and Uni-Perceiver's ``layers`` to ``blocks``; all other names agree.
    Only BEiT's ``relative_position_index`` buffers are left out.

    Args:
        state_dict: entries of an official adapter or baseline on a plain ViT, BEiT or
            Uni-Perceiver, without the ``backbone.`` that a whole detector or segmenter puts before
            them.

    Returns:
        A new dict with the same tensors, in the same order.

    Raises:
        ValueError: the entries are not those of an official backbone.
    """
    families = [f for f in _FAMILIES if all(name in state_dict for name in f.required)]
    # A bare pre-trained net has nothing of a pyramid.
    if len(families) != 1 or not any(name in state_dict for name in _PYRAMIDS):
        known = "; ".join(f"{f.name}: {', '.join(f.required)}" for f in _FAMILIES)
        raise ValueError(
            f"an official backbone has one of {', '.join(_PYRAMIDS)} and the entries of one family "
            f"({known}), got {len(state_dict)} entries such as {sorted(state_dict)[:3]}"
        )
    return {
        _with_prefix(name, families[0].prefixes): tensor
        for name, tensor in state_dict.items()
        if not name.endswith(_DROPPED)
    }


def export_official_backbone(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_official_backbone`.

    Args:
        state_dict: of ``ViTAdapter`` or ``ViTBaseline`` over one of the official nets.

    Returns:
        A new dict with the same tensors, in the same order; without BEiT's
        ``relative_position_index``.

    Raises:
        ValueError: the entries are not those of such a backbone.
    """
    for family in _FAMILIES:
        required = (_with_prefix(name, family.prefixes) for name in family.required)
        if all(name in state_dict for name in required):
            back = {ours: official for official, ours in family.prefixes.items()}
            return {_with_prefix(name, back): tensor for name, tensor in state_dict.items()}
    raise ValueError(
        "a backbone over a ViT, BEiT or UniPerceiver is needed, "
        f"got {len(state_dict)} entries such as {sorted(state_dict)[:3]}"
    )


def _with_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    """``name`` with the one of the prefixes that begins it replaced."""
    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return prefixes.get(prefix, "") + name.removeprefix(prefix)
