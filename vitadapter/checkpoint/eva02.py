"""EVA-02 (arXiv 2303.11331) in its own names or timm's, to those of timm."""

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = ["convert_eva02"]

# Why names are left out, by regular expression of their beginning.
_DROPPED = {
    r"mask_token$": "token of the pre-training task",
    r"(blocks\.\d+\.attn\.)?rope\.": "rotary positions, which the net computes",
    r"(norm|fc_norm|head|lm_head)\.": "final norm or head, which the adapter does without",
}
_RENAMED = (
    (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
    (r"\.attn\.inner_attn_ln\.", ".attn.norm."),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_WITH_SEPARATE_PROJECTIONS = (r"\.attn\.([qv])_bias$", r".attn.\1_proj.bias")
_NEEDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc2.weight")


def convert_eva02(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """EVA-02 to ``TimmViT``.

    Reads the files of the authors (masked image modelling, classifiers, and the image tower of
    EVA-02 CLIP without its prefix) and timm's. Patch kernel and position embedding keep their
    sizes; the files for patches of 14 pixels are resized by whoever loads them.

    Args:
        state_dict: entries of one of them.

    Returns:
        A new dict with names relative to the net. The mask token, final norms, heads and stored
        rotary embeddings are left out.

    Raises:
        ValueError: the entries are not those of an EVA-02 ViT.
    """
    rows = _RENAMED
    if "blocks.0.attn.q_proj.weight" in state_dict:
        rows = (*_RENAMED, _WITH_SEPARATE_PROJECTIONS)
    tensors = {}
    for name, tensor in state_dict.items():
        if any(re.match(pattern, name) for pattern in _DROPPED):
            continue
        for pattern, replacement in rows:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    missing = [name for name in _NEEDED if name not in tensors]
    if missing:
        raise ValueError(
            f"an EVA-02 ViT has {', '.join(_NEEDED)}, but {missing} are missing among "
            f"{len(state_dict)} entries such as {sorted(state_dict)[:3]}"
        )
    return tensors
