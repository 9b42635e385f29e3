"""DINOv3 (arXiv 2508.10104) in the names of its three publishers, to those of timm."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["convert_dinov3"]

# Why names are left out, by regular expression of their beginning.
_DROPPED = {
    r"(embeddings\.)?mask_token$": "token of the pre-training task",
    r"(rope|rope_embed|rope_embeddings)\.": "rotary positions, which the net computes",
    r"blocks\.\d+\.attn\.qkv\.bias_mask$": "applied to the bias",
    r"(norm|local_cls_norm|fc_norm|head)\.": "final norm or head, which the adapter does without",
}
_RENAMED = (
    # transformers
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^(?:model\.)?layer\.(\d+)\.", r"blocks.\1."),
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"\.attention\.o_proj\.", ".attn.proj."),
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


def convert_dinov3(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv3 to ``TimmViT``.

    Reads the original release (``blocks.0.ls1.gamma``), transformers (``layer.0.attention.q_proj``)
    and timm (``blocks.0.gamma_1``). Biases of query and value are left out where all are zero, as
    in most published models: timm's ``vit_*_dinov3`` have none, and those of ``vit_*_dinov3_qkvb``
    are zero to begin with.

    Args:
        state_dict: entries of one of the three.

    Returns:
        A new dict with names relative to the net. The mask token, the final norm and the rotary
        periods are left out.

    Raises:
        ValueError: the entries are not those of a DINOv3 ViT, or its keys have a bias (which the
            model masks out) or one that is not finite.
    """
    tensors = _joined(_renamed(state_dict))
    missing = [name for name in _NEEDED if name not in tensors]
    if missing:
        raise ValueError(
            f"a DINOv3 ViT has {', '.join(_NEEDED)}, but {missing} are missing among "
            f"{len(state_dict)} entries such as {sorted(state_dict)[:3]}"
        )
    for name in [name for name in tensors if name.endswith(".attn.qkv.bias")]:
        bias = tensors.pop(name)
        mask = state_dict.get(f"{name}_mask")
        block = name.removesuffix("qkv.bias")
        tensors[f"{block}q_bias"], tensors[f"{block}v_bias"] = _query_and_value(name, bias, mask)
    biases = [name for name in tensors if name.endswith((".attn.q_bias", ".attn.v_bias"))]
    if not any(tensors[name].any() for name in biases):
        return {name: tensor for name, tensor in tensors.items() if name not in biases}
    return tensors


def _renamed(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # In transformers, up_proj is the first layer of an MLP, or the one beside its gate.
    is_gated = any(name.endswith(".mlp.gate_proj.weight") for name in state_dict)
    rows = (*_RENAMED, (r"\.mlp\.up_proj\.", ".mlp.fc1_x." if is_gated else ".mlp.fc1."))
    tensors = {}
    for name, tensor in state_dict.items():
        if any(re.match(pattern, name) for pattern in _DROPPED):
            continue
        for pattern, replacement in rows:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    return tensors


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Separate projections of query, key and value as one; ``k_proj`` has no bias."""
    for block in [name.removesuffix("q_proj.weight") for name in tensors if "q_proj.w" in name]:
        parts = [f"{block}{part}_proj" for part in "qkv"]
        missing = [f"{part}.weight" for part in parts if f"{part}.weight" not in tensors]
        if missing:
            raise ValueError(f"a DINOv3 ViT has {parts[0]}.weight, but {missing} are missing")
        weights = [tensors.pop(f"{part}.weight") for part in parts]
        tensors[f"{block}qkv.weight"] = torch.cat(weights)
        if f"{parts[0]}.bias" in tensors:
            query, value = (tensors.pop(f"{part}.bias") for part in (parts[0], parts[2]))
            key = tensors.pop(f"{parts[1]}.bias", torch.zeros_like(query))
            tensors[f"{block}qkv.bias"] = torch.cat([query, key, value])
    return tensors


def _query_and_value(name: str, bias: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The parts of a joint bias (3C,) that the model uses."""
    query, key, value = (bias if mask is None else bias * mask).chunk(3)
    if not (query.isfinite().all() and value.isfinite().all()):
        raise ValueError(f"{name} and its mask must be finite in query and value")
    if key.any():
        raise ValueError(
            f"{name} must be 0 for keys (after {name}_mask), got up to {float(key.abs().max()):.3g}"
        )
    return query, value
