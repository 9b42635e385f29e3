"""AugReg (arXiv 2106.10270) as published: `.npz` files with JAX's names."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vitadapter.checkpoint.family import (
    HEAD,
    Conversion,
    Family,
    check_names,
    convert_names,
    implied_layer_scale,
)

__all__ = ["AUGREG", "convert_augreg"]

_BLOCK = "Transformer/encoderblock_"
_ATTENTION = "MultiHeadDotProductAttention_1"
_PARTS = ("query", "key", "value")
_KINDS = {"kernel": "weight", "bias": "bias"}
_DROPPED = {
    r"(opt/target/)?(head|pre_logits)/": HEAD,
    r"opt/(?!target/)": "state of the optimizer",
}
_IN_BLOCK = {
    "LayerNorm_0/scale": "norm1.weight",
    "LayerNorm_0/bias": "norm1.bias",
    "LayerNorm_2/scale": "norm2.weight",
    "LayerNorm_2/bias": "norm2.bias",
    f"{_ATTENTION}/out/kernel": "attn.proj.weight",
    f"{_ATTENTION}/out/bias": "attn.proj.bias",
    "MlpBlock_3/Dense_0/kernel": "mlp.fc1.weight",
    "MlpBlock_3/Dense_0/bias": "mlp.fc1.bias",
    "MlpBlock_3/Dense_1/kernel": "mlp.fc2.weight",
    "MlpBlock_3/Dense_1/bias": "mlp.fc2.bias",
    **{
        f"{_ATTENTION}/{part}/{jax}": f"attn.{part}.{ours}"
        for part in _PARTS
        for jax, ours in _KINDS.items()
    },
}
_RENAMED = (
    ("^opt/target/", ""),
    ("^embedding/kernel$", "patch_embed.proj.weight"),
    ("^embedding/bias$", "patch_embed.proj.bias"),
    ("^cls$", "cls_token"),
    ("^Transformer/encoder_norm/scale$", "norm.weight"),
    ("^Transformer/encoder_norm/bias$", "norm.bias"),
    ("^Transformer/posembed_input/pos_embedding$", "pos_embed"),
    *((rf"^{_BLOCK}(\d+)/{jax}$", rf"blocks.\1.{ours}") for jax, ours in _IN_BLOCK.items()),
)
# From JAX's order of dimensions to PyTorch's, by the end of our name.
_ORDERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "patch_embed.proj.weight": lambda kernel: kernel.permute(3, 2, 0, 1),  # from (h, w, in, out)
    "attn.proj.weight": lambda kernel: kernel.flatten(0, 1).T,  # from (heads, head_dim, out)
    "mlp.fc1.weight": lambda kernel: kernel.T,
    "mlp.fc2.weight": lambda kernel: kernel.T,
}
_PART = re.compile(r"blocks\.(\d+)\.attn\.(query|key|value)\.(weight|bias)")


def convert_augreg(state_dict: Mapping[str, Tensor]) -> Conversion:
    """Converts AugReg's JAX names to those of `ViT` or `TimmViT`.

    Args:
        state_dict: the arrays of the `.npz` file.

    Returns:
        The tensors under the names of the net. Unknown names are kept.

    Raises:
        ValueError: the patch embedding, or part of a block, is missing.
    """
    names = {name.removeprefix("opt/target/") for name in state_dict}
    check_names("an AugReg checkpoint", ["embedding/kernel"], state_dict, names)
    implied = implied_layer_scale({})
    conversion = convert_names(state_dict, drop=_DROPPED, rename=_RENAMED, implied=implied)
    for name, tensor in conversion.tensors.items():
        for suffix, order in _ORDERS.items():
            if name.endswith(suffix):
                conversion.tensors[name] = order(tensor)
    for block in {found[1] for found in map(_PART.fullmatch, conversion.tensors) if found}:
        for kind in _KINDS:
            _join_projections(conversion, block, kind)
    return conversion


def _join_projections(conversion: Conversion, block: str, kind: str) -> None:
    """Query, key and value, (C, heads, head_dim) each, as one (3C, C), or their biases as (3C,)."""
    names = {
        f"{_BLOCK}{block}/{_ATTENTION}/{part}/{kind}": f"blocks.{block}.attn.{part}.{_KINDS[kind]}"
        for part in _PARTS
    }
    missing = [jax for jax, ours in names.items() if ours not in conversion.tensors]
    if missing:
        raise ValueError(f"an AugReg checkpoint has {missing[0]}, but it is missing")
    parts = [conversion.tensors.pop(name) for name in names.values()]
    flat = [part.flatten(1).T if kind == "kernel" else part.flatten() for part in parts]
    joint = f"blocks.{block}.attn.qkv.{_KINDS[kind]}"
    conversion.tensors[joint] = torch.cat(flat)
    for old, new in conversion.renamed.items():
        if new in names.values():
            conversion.renamed[old] = joint


def _is_augreg(state_dict: Mapping[str, Tensor]) -> bool:
    return any(name.removeprefix("opt/target/") == "embedding/kernel" for name in state_dict)


AUGREG = Family("augreg", "AugReg .npz files with JAX's names", _is_augreg, convert_augreg)
