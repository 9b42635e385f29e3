"""AugReg (arXiv 2106.10270) as published: ``.npz`` files in JAX's names."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vitadapter.checkpoint.family import LAYER_SCALE_OF_ONE, Conversion, Family

__all__ = ["AUGREG", "convert_augreg"]

_OPTIMIZER_PREFIX = "opt/target/"
_ATTENTION = "MultiHeadDotProductAttention_1"
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.+)")


def _linear(kernel: Tensor) -> Tensor:
    """(in, out) to (out, in)."""
    return kernel.T


def _patch_kernel(kernel: Tensor) -> Tensor:
    """(height, width, in, out) to (out, in, height, width)."""
    return kernel.permute(3, 2, 0, 1)


def _heads_to_channels(kernel: Tensor) -> Tensor:
    """(heads, head_dim, out) to (out, heads * head_dim)."""
    return kernel.flatten(0, 1).T


def _same(tensor: Tensor) -> Tensor:
    return tensor


# New name and what is done to the tensor, by name in the file.
_OUTSIDE: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "embedding/kernel": ("patch_embed.proj.weight", _patch_kernel),
    "embedding/bias": ("patch_embed.proj.bias", _same),
    "cls": ("cls_token", _same),
    "Transformer/posembed_input/pos_embedding": ("pos_embed", _same),
}
_IN_BLOCK: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "LayerNorm_0/scale": ("norm1.weight", _same),
    "LayerNorm_0/bias": ("norm1.bias", _same),
    "LayerNorm_2/scale": ("norm2.weight", _same),
    "LayerNorm_2/bias": ("norm2.bias", _same),
    f"{_ATTENTION}/out/kernel": ("attn.proj.weight", _heads_to_channels),
    f"{_ATTENTION}/out/bias": ("attn.proj.bias", _same),
    "MlpBlock_3/Dense_0/kernel": ("mlp.fc1.weight", _linear),
    "MlpBlock_3/Dense_0/bias": ("mlp.fc1.bias", _same),
    "MlpBlock_3/Dense_1/kernel": ("mlp.fc2.weight", _linear),
    "MlpBlock_3/Dense_1/bias": ("mlp.fc2.bias", _same),
}
_QKV = re.compile(rf"{_ATTENTION}/(query|key|value)/(kernel|bias)")
_DROPPED = {
    "Transformer/encoder_norm/": "final norm, which the adapter does without",
    "head/": "head of the pre-training task",
    "pre_logits/": "head of the pre-training task",
    "opt/": "state of the optimizer",
}


def _joint_projection(state_dict: Mapping[str, Tensor], block: str) -> dict[str, Tensor]:
    """Query, key and value, (C, heads, head_dim) each, as one (3C, C), and its bias (3C,)."""
    parts = [f"{block}/{_ATTENTION}/{name}" for name in ("query", "key", "value")]
    lacking = [n for p in parts for n in (f"{p}/kernel", f"{p}/bias") if n not in state_dict]
    if lacking:
        raise ValueError(f"an AugReg checkpoint has {lacking[0]}, but it is missing")
    return {
        "weight": torch.cat([state_dict[f"{part}/kernel"].flatten(1).T for part in parts]),
        "bias": torch.cat([state_dict[f"{part}/bias"].flatten() for part in parts]),
    }


def convert_augreg(state_dict: Mapping[str, Tensor]) -> Conversion:
    """AugReg's JAX names to ``ViT`` or ``TimmViT``.

    Args:
        state_dict: the arrays of the ``.npz`` file.

    Returns:
        Conversion: to the names of the net. Entries of unknown names are kept as they are.

    Raises:
        ValueError: the patch embedding, or part of a block, is missing.
    """
    names = {name.removeprefix(_OPTIMIZER_PREFIX): name for name in state_dict}
    plain = {short: state_dict[name] for short, name in names.items()}
    if "embedding/kernel" not in plain:
        raise ValueError(
            f"an AugReg checkpoint has embedding/kernel, but it is missing among {len(plain)} "
            f"entries such as {sorted(plain)[:3]}"
        )
    tensors, renamed, dropped = {}, {}, {}
    for short, tensor in plain.items():
        reason = next((why for start, why in _DROPPED.items() if short.startswith(start)), None)
        if reason is not None:
            dropped[names[short]] = reason
            continue
        block = _BLOCK.fullmatch(short)
        if block and (joint := _QKV.fullmatch(block[2])):
            kind = "weight" if joint[2] == "kernel" else "bias"
            new = f"blocks.{block[1]}.attn.qkv.{kind}"
            if new not in tensors:
                path = f"Transformer/encoderblock_{block[1]}"
                tensors[new] = _joint_projection(plain, path)[kind]
        elif block and block[2] in _IN_BLOCK:
            inner, change = _IN_BLOCK[block[2]]
            new = f"blocks.{block[1]}.{inner}"
            tensors[new] = change(tensor)
        else:
            new, change = _OUTSIDE.get(short, (short, _same))
            tensors[new] = change(tensor)
        renamed[names[short]] = new
    return Conversion(tensors, renamed=renamed, dropped=dropped, implied=LAYER_SCALE_OF_ONE)


def _is_augreg(state_dict: Mapping[str, Tensor]) -> bool:
    return any(name.removeprefix(_OPTIMIZER_PREFIX) == "embedding/kernel" for name in state_dict)


AUGREG = Family("augreg", "AugReg .npz files in JAX's names", _is_augreg, (convert_augreg,))
