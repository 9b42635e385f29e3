"""Plain ViTs with timm's names: DeiT, AugReg (`.pth`), MAE, DINOv2 and others."""

from collections.abc import Mapping

from torch import Tensor

from vitadapter.checkpoint.family import (
    HEAD,
    HEADS,
    Conversion,
    Family,
    check_names,
    convert_names,
    implied_layer_scale,
)

__all__ = ["DINOV2", "MAE", "TIMM_VIT", "convert_dinov2", "convert_timm_vit"]

_NEEDED = ("patch_embed.proj.weight", "blocks.0.norm1.weight")
# DINOv2's and timm's name, our ViT's, and that of DeiT III.
_LAYER_SCALES = ("ls1.gamma", "gamma1", "gamma_1")
_LAYER_SCALE = r"^(blocks\.\d+)\.(?:ls|gamma_?)([12])(?:\.gamma)?$"


def convert_timm_vit(state_dict: Mapping[str, Tensor]) -> Conversion:
    """Converts DeiT, AugReg, MAE and others from timm's names to those of `ViT` or `TimmViT`.

    Raises:
        ValueError: the entries are not those of a plain ViT.
    """
    check_names("a plain ViT", _NEEDED, state_dict)
    drop = HEADS | {"decoder_": HEAD}  # decoder_ is MAE's
    return convert_names(state_dict, drop=drop, implied=implied_layer_scale(state_dict))


def convert_dinov2(state_dict: Mapping[str, Tensor]) -> Conversion:
    """Converts DINOv2 from its own, timm's or DeiT III's names to those of `ViT`.

    The layer scale vectors get the official ViT-Adapter's names.

    Raises:
        ValueError: the entries are not those of a plain ViT.
    """
    check_names("a plain ViT", _NEEDED, state_dict)
    return convert_names(state_dict, drop=HEADS, rename=[(_LAYER_SCALE, r"\1.gamma\2")])


def convert_dinov2_to_timm(state_dict: Mapping[str, Tensor]) -> Conversion:
    """Converts DINOv2 from its own, timm's, DeiT III's or our names to those of `TimmViT`.

    In timm's models with registers, the position of the class token is part of the token itself.

    Raises:
        ValueError: the entries are not those of a plain ViT.
    """
    check_names("a plain ViT", _NEEDED, state_dict)
    tensors = dict(state_dict)
    if "register_tokens" in tensors:
        pos_embed = tensors["pos_embed"]
        tensors["cls_token"] = tensors["cls_token"] + pos_embed[:, :1]
        tensors["pos_embed"] = pos_embed[:, 1:]
    rename = [("^register_tokens$", "reg_token"), (_LAYER_SCALE, r"\1.ls\2.gamma")]
    return convert_names(tensors, drop=HEADS, rename=rename)


def _is_plain_vit(state_dict: Mapping[str, Tensor]) -> bool:
    return all(name in state_dict for name in _NEEDED)


def _is_dinov2(state_dict: Mapping[str, Tensor]) -> bool:
    return _is_plain_vit(state_dict) and any(f"blocks.0.{n}" in state_dict for n in _LAYER_SCALES)


def _is_mae(state_dict: Mapping[str, Tensor]) -> bool:
    """An encoder alone is recognised by its fixed positions, which are 0 for the class token."""
    if not _is_plain_vit(state_dict):
        return False
    if any(name.startswith("decoder_") for name in state_dict):
        return True
    pos_embed = state_dict.get("pos_embed")
    if pos_embed is None or pos_embed.ndim != 3 or pos_embed.is_meta:
        return False
    return "head.weight" not in state_dict and not pos_embed[:, 0].any()


DINOV2 = Family(
    "dinov2",
    "DINOv2, DeiT III and other plain ViTs with layer scale, original or timm's names",
    _is_dinov2,
    convert_dinov2,
    alternatives=(convert_dinov2_to_timm, convert_timm_vit),
)
MAE = Family("mae", "MAE, encoder alone or with decoder", _is_mae, convert_timm_vit)
TIMM_VIT = Family(
    "timm_vit",
    "DeiT, AugReg (.pth) and other plain ViTs in timm's names",
    _is_plain_vit,
    convert_timm_vit,
)
