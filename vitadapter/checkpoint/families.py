"""All families of checkpoints, and which one a file belongs to."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from vitadapter.checkpoint.augreg import AUGREG
from vitadapter.checkpoint.beit import convert_beit
from vitadapter.checkpoint.dinov3 import convert_dinov3
from vitadapter.checkpoint.eva02 import convert_eva02
from vitadapter.checkpoint.family import Conversion, Converter, Family, describe
from vitadapter.checkpoint.official_detectors import OFFICIAL_FAMILIES
from vitadapter.checkpoint.plain_vit import DINOV2, HEADS, MAE, TIMM_VIT
from vitadapter.checkpoint.uni_perceiver import convert_uni_perceiver

__all__ = ["FAMILIES", "find_family", "recognise"]

_NET = re.compile(r"(?:^|(?P<path>.+?)\.)net\.")


def _own_backbone_path(state_dict: Mapping[str, Tensor]) -> str | None:
    """Where a model of ours has its backbone, which is what has the net; None without a net."""
    for name in state_dict:
        if found := _NET.match(name):
            return found["path"] or ""
    return None


def _convert_own(state_dict: Mapping[str, Tensor]) -> Conversion:
    path = _own_backbone_path(state_dict)
    return Conversion(dict(state_dict), scope="model", backbone_path=path)


_OWN = Family(
    "vitadapter",
    "saved by this project: a whole model or its backbone",
    lambda state_dict: _own_backbone_path(state_dict) is not None,
    (_convert_own,),
)

_BIAS_TABLE = re.compile(r"(rel_pos_bias|blocks\.\d+\.attn)\.relative_position_bias_table")
_BEIT_REASONS = {
    r"relative_position_index$": "follows from the size of the bias table",
    r"rel_pos_bias\.relative_position_bias_table$": "copied to every block",
    **HEADS,
}
_BEIT = Family(
    "beit",
    "BEiT and BEiTv2, pre-trained or fine-tuned, original or timm's names",
    lambda state_dict: any(_BIAS_TABLE.fullmatch(name) for name in state_dict),
    (lambda state_dict: describe(state_dict, convert_beit(state_dict), _BEIT_REASONS),),
)

_UNI_PERCEIVER_REASONS = {
    r"loss_prepare|token_embed": "head of the pre-training task",
    r".": "not of the image encoder",
}
_UNI_PERCEIVER = Family(
    "uni_perceiver",
    "Uni-Perceiver, as published or as converted for the official ViT-Adapter",
    lambda state_dict: any(n.startswith(("visual_embed.", "video_embed.")) for n in state_dict),
    (
        lambda state_dict: describe(
            state_dict, convert_uni_perceiver(state_dict), _UNI_PERCEIVER_REASONS
        ),
    ),
)

_REGISTERS = ("storage_tokens", "reg_token", "embeddings.register_tokens")
_DINOV3_REASONS = {
    r"rope": "rotary positions, which the net computes",
    r"\.[qkv]_proj\.weight$": "joined into attn.qkv",
    r"bias_mask$": "applied to the bias",
    r"\.attn\.|\.attention\.": "biases are split by query and value, and left out where all are 0",
    r"local_cls_norm\.": "final norm, which the adapter does without",
    r"mask_token$": "token of the pre-training task",
    **HEADS,
}


def _is_dinov3(state_dict: Mapping[str, Tensor]) -> bool:
    """Registers and no table of positions, which DINOv2 has."""
    return any(name in state_dict for name in _REGISTERS) and not any(
        name.endswith(("pos_embed", "position_embeddings")) for name in state_dict
    )


_DINOV3 = Family(
    "dinov3",
    "DINOv3 in its original, transformers' or timm's names",
    _is_dinov3,
    (lambda state_dict: describe(state_dict, convert_dinov3(state_dict), _DINOV3_REASONS),),
)

_EVA02_MLP = re.compile(r"blocks\.0\.mlp\.(w12|w3|ffn_ln|fc1_g)\.")
_EVA02_REASONS = {
    r"(^|\.)rope\.": "rotary positions, which the net computes",
    r"(^|\.)(norm|fc_norm|head|lm_head)\.": "final norm or head, which the adapter does without",
    r"mask_token$": "token of the pre-training task",
}
_EVA02 = Family(
    "eva02",
    "EVA-02 and its CLIP, original or timm's names",
    lambda state_dict: (
        any(_EVA02_MLP.match(name) for name in state_dict)
        and "blocks.0.ls1.gamma" not in state_dict
    ),
    (lambda state_dict: describe(state_dict, convert_eva02(state_dict), _EVA02_REASONS),),
)

# The first that recognises a file has it: what is more special comes first.
FAMILIES: tuple[Family, ...] = (
    _OWN,
    *OFFICIAL_FAMILIES,
    AUGREG,
    _UNI_PERCEIVER,
    _BEIT,
    _DINOV3,
    _EVA02,
    MAE,
    DINOV2,
    TIMM_VIT,
)


# Parts of models whose names stand before those of the plain ViT inside.
_WRAPPERS = {
    *("backbone", "encoder", "model", "module", "vit", "trunk", "student", "teacher"),
    *("visual", "visual_encoder", "vision_model", "vision_tower", "image_encoder", "img_backbone"),
}
_MOST_WRAPPERS = 4
_OUTSIDE = "no part of the plain ViT"


def _known() -> str:
    return "; ".join(f"{family.name} ({family.description})" for family in FAMILIES)


def _prefixes(state_dict: Mapping[str, Tensor]) -> list[str]:
    """What may stand before the names of a plain ViT, what is more likely first.

    Of a self-distilled model the teacher is taken, as for a file that has it apart.
    """
    prefixes = {""}
    for name in state_dict:
        parts = name.split(".", _MOST_WRAPPERS)[:_MOST_WRAPPERS]
        for count, part in enumerate(parts, start=1):
            if part not in _WRAPPERS:
                break
            prefixes.add(".".join(parts[:count]) + ".")
    return sorted(prefixes, key=lambda prefix: ("student" in prefix, prefix.count("."), prefix))


def _inner(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n[len(prefix) :]: t for n, t in state_dict.items() if n.startswith(prefix)}


def _under(family: Family, prefix: str) -> Family:
    """The family, for files that have it under a prefix."""

    def convert_under(convert: Converter, state_dict: Mapping[str, Tensor]) -> Conversion:
        inner = _inner(state_dict, prefix)
        outside = {n: _OUTSIDE for n in state_dict if not n.startswith(prefix)}
        conversion = convert(inner)
        stripped = {name: name for name in inner if name in conversion.tensors}
        renamed = {prefix + old: new for old, new in (stripped | conversion.renamed).items()}
        dropped = {prefix + name: why for name, why in conversion.dropped.items()}
        return replace(conversion, renamed=renamed, dropped=outside | dropped)

    return replace(
        family, converters=tuple(partial(convert_under, convert) for convert in family.converters)
    )


def recognise(state_dict: Mapping[str, Tensor], families: Sequence[Family] = FAMILIES) -> Family:
    """The family of a state dict, from its names.

    The plain ViT may be part of another model: names may have a prefix of the parts ``_WRAPPERS``,
    such as ``backbone.`` or ``model.visual.``.

    Args:
        state_dict: as read from a file.
        families: those that it may be of. One alone is returned in any case.

    Returns:
        The family, whose converters take the whole of the state dict.

    Raises:
        ValueError: none; lists those that are known.
    """
    for prefix in _prefixes(state_dict):
        inner = _inner(state_dict, prefix)
        for family in families:
            if family.recognises(inner):
                return _under(family, prefix) if prefix else family
    if len(families) == 1:
        return families[0]  # its converter says what is missing
    raise ValueError(
        f"its names are of no known family: it has {len(state_dict)} entries such as "
        f"{sorted(state_dict)[:3]}. Known: {_known()}"
    )


def find_family(name: str) -> Family:
    """The family called ``name``.

    Raises:
        ValueError: there is none; lists those that are known.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ValueError(f"there is no family {name!r}. Known: {_known()}")
