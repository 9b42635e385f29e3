"""Plain ViTs in timm's names: DeiT, AugReg (``.pth``), MAE, DINOv2 and what else timm has."""

from collections.abc import Mapping

from torch import Tensor

from vitadapter.checkpoint.family import Conversion, Family, convert_names

__all__ = ["DINOV2", "MAE", "TIMM_VIT", "convert_dinov2", "convert_mae", "convert_timm_vit"]

_HEAD = "head of the pre-training task"
# The final norm has the width of the adapter's own norms, which it must never reach.
HEADS = {
    r"(norm|fc_norm)\.": "final norm, which the adapter does without",
    r"(head|head_dist|pre_logits|attn_pool)\.": _HEAD,
    r"mask_token$": _HEAD,
}
_MAE_DECODER = {r"decoder_": _HEAD}
_NEEDED = ("patch_embed.proj.weight", "blocks.0.norm1.weight")


def _check(state_dict: Mapping[str, Tensor]) -> None:
    missing = [name for name in _NEEDED if name not in state_dict]
    if missing:
        raise ValueError(
            f"a plain ViT has {', '.join(_NEEDED)}, but {missing} are missing among "
            f"{len(state_dict)} entries such as {sorted(state_dict)[:3]}"
        )


def convert_timm_vit(state_dict: Mapping[str, Tensor]) -> Conversion:
    """DeiT, AugReg and others in timm's names, to ``ViT`` or ``TimmViT``: only the head goes.

    Args:
        state_dict: of a timm ``VisionTransformer``.

    Returns:
        Conversion: to the names of the net.

    Raises:
        ValueError: the entries are not those of a plain ViT.
    """
    _check(state_dict)
    return convert_names(state_dict, drop=HEADS)


def convert_mae(state_dict: Mapping[str, Tensor]) -> Conversion:
    """MAE, with or without its decoder, to ``ViT`` or ``TimmViT``.

    Args:
        state_dict: of a masked autoencoder.

    Returns:
        Conversion: to the names of the net.

    Raises:
        ValueError: the entries are not those of a plain ViT.
    """
    _check(state_dict)
    return convert_names(state_dict, drop=HEADS | _MAE_DECODER)


def convert_dinov2(state_dict: Mapping[str, Tensor]) -> Conversion:
    """DINOv2 to ``ViT``, whose layer scale vectors have the official ViT-Adapter's names.

    Args:
        state_dict: in the original or timm's names (they agree).

    Returns:
        Conversion: to the names of the net.

    Raises:
        ValueError: the entries are not those of a plain ViT.
    """
    _check(state_dict)
    return convert_names(
        state_dict, drop=HEADS, rename=[(r"^(blocks\.\d+)\.ls([12])\.gamma$", r"\1.gamma\2")]
    )


def convert_dinov2_to_timm(state_dict: Mapping[str, Tensor]) -> Conversion:
    """DINOv2 to ``TimmViT``.

    timm's models with registers have no position of the class token: it is in the token itself.

    Args:
        state_dict: in the original or timm's names.

    Returns:
        Conversion: to the names of the net.

    Raises:
        ValueError: the entries are not those of a plain ViT.
    """
    _check(state_dict)
    tensors = dict(state_dict)
    if "register_tokens" in tensors:
        pos_embed = tensors["pos_embed"]
        tensors["cls_token"] = tensors["cls_token"] + pos_embed[:, :1]
        tensors["pos_embed"] = pos_embed[:, 1:]
    return convert_names(tensors, drop=HEADS, rename=[("^register_tokens$", "reg_token")])


def _is_plain_vit(state_dict: Mapping[str, Tensor]) -> bool:
    return all(name in state_dict for name in _NEEDED)


def _is_dinov2(state_dict: Mapping[str, Tensor]) -> bool:
    return _is_plain_vit(state_dict) and "blocks.0.ls1.gamma" in state_dict


def _is_mae(state_dict: Mapping[str, Tensor]) -> bool:
    """An encoder alone is known by its fixed positions, which are 0 for the class token."""
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
    "DINOv2 and other plain ViTs with layer scale, original or timm's names",
    _is_dinov2,
    (convert_dinov2, convert_dinov2_to_timm),
)
MAE = Family("mae", "MAE, encoder alone or with decoder", _is_mae, (convert_mae,))
TIMM_VIT = Family(
    "timm_vit",
    "DeiT, AugReg (.pth) and other plain ViTs in timm's names",
    _is_plain_vit,
    (convert_timm_vit,),
)
