"""All families of checkpoints, and which one a file belongs to."""

import re
from collections.abc import Mapping

from torch import Tensor

from vitadapter.checkpoint.augreg import AUGREG
from vitadapter.checkpoint.beit import convert_beit
from vitadapter.checkpoint.dinov3 import convert_dinov3
from vitadapter.checkpoint.eva02 import convert_eva02
from vitadapter.checkpoint.family import Conversion, Family, describe
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

_BEIT_REASONS = {
    r"relative_position_index$": "follows from the size of the bias table",
    r"rel_pos_bias\.relative_position_bias_table$": "copied to every block",
    **HEADS,
}
_BEIT = Family(
    "beit",
    "BEiT and BEiTv2, pre-trained or fine-tuned, original or timm's names",
    lambda state_dict: any(n.endswith("relative_position_bias_table") for n in state_dict),
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

_EVA02_MLP = re.compile(r"(visual\.(trunk\.)?)?blocks\.0\.mlp\.(w12|w3|ffn_ln|fc1_g)\.")
_EVA02_REASONS = {
    r"(^|\.)rope\.": "rotary positions, which the net computes",
    r"(^|\.)(norm|fc_norm|head|lm_head)\.": "final norm or head, which the adapter does without",
    r"mask_token$": "token of the pre-training task",
    r".": "not of the image tower",
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


def _known() -> str:
    return "; ".join(f"{family.name} ({family.description})" for family in FAMILIES)


def recognise(state_dict: Mapping[str, Tensor]) -> Family:
    """The family of a state dict, from its names.

    Raises:
        ValueError: none; lists those that are known.
    """
    for family in FAMILIES:
        if family.recognises(state_dict):
            return family
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
