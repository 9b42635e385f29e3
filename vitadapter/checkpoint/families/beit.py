"""Pre-trained BEiT and BEiTv2 (github.com/microsoft/unilm), for our `BEiT`."""

import re
from collections.abc import Mapping

from torch import Tensor

from vitadapter.checkpoint.family import (
    BIAS_INDEX,
    HEAD,
    HEADS,
    Conversion,
    Family,
    check_names,
    convert_names,
)

__all__ = ["BEIT", "convert_beit"]

_NEEDED = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.q_bias")
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
_TABLE = "blocks.{}.attn.relative_position_bias_table"
_ANY_TABLE = re.compile(r"(rel_pos_bias|blocks\.\d+\.attn)\.relative_position_bias_table")
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_DROPPED = {
    r".*relative_position_index$": BIAS_INDEX,
    f"{re.escape(_SHARED_TABLE)}$": "copied to every block",
    r"(lm_head|cls_pt_\w+)\.": HEAD,  # cls_pt is BEiTv2's
    **HEADS,
}


def convert_beit(state_dict: Mapping[str, Tensor]) -> Conversion:
    """Converts a pre-trained BEiT or BEiTv2 to the names of our net.

    Files that were not fine-tuned have one table for all blocks, which is copied to each block.
    `cls_token` is kept, although nets with window attention have none.

    Raises:
        ValueError: the entries are not those of a BEiT.
    """
    shared = state_dict.get(_SHARED_TABLE)
    needed = (*_NEEDED, _TABLE.format(0)) if shared is None else _NEEDED
    check_names("a pre-trained BEiT", needed, state_dict)
    conversion = convert_names(state_dict, drop=_DROPPED)
    if shared is not None:
        # Separate copies, because each block trains its own.
        blocks = sorted({int(m[1]) for m in map(_BLOCK.match, conversion.tensors) if m})
        conversion.tensors |= {_TABLE.format(block): shared.clone() for block in blocks}
    return conversion


BEIT = Family(
    "beit",
    "BEiT and BEiTv2, pre-trained or fine-tuned, original or timm's names",
    lambda state_dict: any(_ANY_TABLE.fullmatch(name) for name in state_dict),
    convert_beit,
)
