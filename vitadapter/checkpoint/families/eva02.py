"""EVA-02 (arXiv 2303.11331) with its own names or timm's, for `TimmViT`."""

import re
from collections.abc import Mapping

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

__all__ = ["EVA02", "RENAMED_SEPARATE", "convert_eva02"]

_DROPPED = {r"(blocks\.\d+\.attn\.)?rope\.": ROPE, r"lm_head\.": HEAD, **HEADS}
_RENAMED = (
    (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
    (r"\.attn\.inner_attn_ln\.", ".attn.norm."),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
RENAMED_SEPARATE = (*_RENAMED, (r"\.attn\.([qv])_bias$", r".attn.\1_proj.bias"))
"""Of nets that project query, key and value separately, to timm's names."""

_NEEDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc2.weight")
_MLP = re.compile(r"blocks\.0\.mlp\.(w12|w3|ffn_ln|fc1_g)\.")


def convert_eva02(state_dict: Mapping[str, Tensor]) -> Conversion:
    """Converts EVA-02 to the names of `TimmViT`.

    Reads the files of the authors (masked image modelling, classifiers, and the image tower of
    EVA-02 CLIP without its prefix) and timm's.

    Raises:
        ValueError: the entries are not those of an EVA-02 ViT.
    """
    is_separate = "blocks.0.attn.q_proj.weight" in state_dict
    rename = RENAMED_SEPARATE if is_separate else _RENAMED
    if "norm.weight" not in state_dict:  # timm's name of the norm that follows the blocks
        state_dict = {re.sub("^fc_norm\\.", "norm.", n): t for n, t in state_dict.items()}
    conversion = convert_names(state_dict, drop=_DROPPED, rename=rename)
    check_names("an EVA-02 ViT", _NEEDED, state_dict, conversion.tensors)
    return conversion


def _is_eva02(state_dict: Mapping[str, Tensor]) -> bool:
    is_layer_scaled = "blocks.0.ls1.gamma" in state_dict  # DINOv2 and v3 with a gated MLP
    return not is_layer_scaled and any(_MLP.match(name) for name in state_dict)


EVA02 = Family("eva02", "EVA-02 and its CLIP, original or timm's names", _is_eva02, convert_eva02)
