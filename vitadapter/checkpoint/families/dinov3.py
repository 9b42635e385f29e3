"""DINOv3 (arXiv 2508.10104) from any of its three publishers, for `TimmViT`."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vitadapter.checkpoint.family import (
    HEAD,
    HEADS,
    ROPE,
    Conversion,
    Family,
    check_names,
    convert_names,
)

__all__ = ["DINOV3", "convert_dinov3"]

_DROPPED = {
    r"(rope|rope_embed|rope_embeddings)\.": ROPE,
    r"blocks\.\d+\.attn\.qkv\.bias_mask$": "applied to the bias",
    r"local_cls_norm\.": HEAD,
    r"embeddings\.mask_token$": HEADS["mask_token$"],
    **HEADS,
}
_RENAMED = (
    # transformers
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^(?:model\.)?layer\.(\d+)\.", r"blocks.\1."),
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.([qv])_proj\.bias$", r".attn.\1_bias"),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1_proj."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    # the original release
    (r"^storage_tokens$", "reg_token"),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_NEEDED = ("cls_token", "reg_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
_REGISTERS = ("storage_tokens", "reg_token", "embeddings.register_tokens")
_JOINED = "joined into attn.qkv"
_SPLIT = "split into those of query and value, which are left out if all are 0"
_ZERO = "a bias that is 0"


def convert_dinov3(state_dict: Mapping[str, Tensor]) -> Conversion:
    """Converts DINOv3 to the names of `TimmViT`.

    Reads the original release (`blocks.0.ls1.gamma`), transformers (`layer.0.attention.q_proj`)
    and timm (`blocks.0.gamma_1`). Biases of query and value are left out if all are zero, as in
    most published models: timm's `vit_*_dinov3` have none, and those of `vit_*_dinov3_qkvb`
    are zero to begin with.

    Raises:
        ValueError: the entries are not those of a DINOv3 ViT, or its keys have a bias (which the
            model masks out) or one that is not finite.
    """
    # In transformers, up_proj is the first layer of an MLP, or the one beside its gate.
    is_gated = any(name.endswith(".mlp.gate_proj.weight") for name in state_dict)
    up_proj = (r"\.mlp\.up_proj\.", ".mlp.fc1_x." if is_gated else ".mlp.fc1.")
    conversion = convert_names(state_dict, drop=_DROPPED, rename=(*_RENAMED, up_proj))
    tensors = conversion.tensors
    for name in [name for name in tensors if name.endswith(".q_proj.weight")]:
        _join_projections(conversion, name.removesuffix("q_proj.weight"))
    check_names("a DINOv3 ViT", _NEEDED, state_dict, tensors)
    split: dict[str, Tensor] = {}
    for name in [name for name in tensors if name.endswith(".attn.qkv.bias")]:
        split |= _split_bias(name, conversion.take(name, _SPLIT), state_dict.get(f"{name}_mask"))
    named = [name for name in tensors if name.endswith((".attn.q_bias", ".attn.v_bias"))]
    if any(bias.any() for bias in (*split.values(), *(tensors[name] for name in named))):
        tensors |= split
    else:
        for name in named:
            conversion.take(name, _ZERO)
    return conversion


def _join_projections(conversion: Conversion, block: str) -> None:
    """Joins separate projections of query, key and value."""
    parts = [f"{block}{part}_proj.weight" for part in "qkv"]
    missing = [name for name in parts if name not in conversion.tensors]
    if missing:
        raise ValueError(f"a DINOv3 ViT has {parts[0]}, but {missing} are missing")
    weights = [conversion.take(name, _JOINED) for name in parts]
    conversion.tensors[f"{block}qkv.weight"] = torch.cat(weights)
    key_bias = f"{block}k_proj.bias"
    if key_bias in conversion.tensors:
        _check_key(key_bias, conversion.take(key_bias, _ZERO))


def _split_bias(name: str, bias: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """The parts of a joint bias (3C,) that the model uses."""
    query, key, value = (bias if mask is None else bias * mask).chunk(3)
    if not (query.isfinite().all() and value.isfinite().all()):
        raise ValueError(f"{name} and its mask must be finite in query and value")
    _check_key(name, key)
    block = name.removesuffix("qkv.bias")
    return {f"{block}q_bias": query, f"{block}v_bias": value}


def _check_key(name: str, bias: Tensor) -> None:
    if bias.any():
        raise ValueError(
            f"{name} must be 0 for keys (after their mask), got up to {float(bias.abs().max()):.3g}"
        )


def _is_dinov3(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether there are registers but, unlike in DINOv2, no table of positions."""
    return any(name in state_dict for name in _REGISTERS) and not any(
        name.endswith(("pos_embed", "position_embeddings")) for name in state_dict
    )


DINOV3 = Family(
    "dinov3", "DINOv3 in its original, transformers' or timm's names", _is_dinov3, convert_dinov3
)
