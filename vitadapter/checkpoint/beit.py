"""Pre-trained BEiT and BEiTv2 (github.com/microsoft/unilm), to our ``BEiT`` net."""

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = ["convert_beit"]

_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
_BLOCK = re.compile(r"blocks\.(\d+)\.")
# Final norms; heads, further layers (BEiTv2) and mask of the pre-training; and indexes, which
# follow from the tables.
_DROPPED = re.compile(
    r"(?:fc_norm|norm|head|lm_head|cls_pt_\w+)\.|mask_token$|.*relative_position_index$"
)


def convert_beit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pre-trained BEiT or BEiTv2 to the names of our net.

    A table that all blocks share, as in files that were only pre-trained, is copied to each block.
    Tables keep their size: ``resize_relative_position_bias_table`` brings each to the net's.
    ``cls_token`` stays, although nets with window attention have none.

    Args:
        state_dict: entries of the original model, without the file's outer ``model`` or
            ``module`` and without a prefix.

    Returns:
        A new dict; names as in ``BEiT.state_dict()``.

    Raises:
        ValueError: the entries are not those of a BEiT.
    """
    entries = dict(state_dict)
    shared = entries.pop(_SHARED_TABLE, None)
    _check_is_beit(entries, shared is not None, state_dict)
    converted = {name: tensor for name, tensor in entries.items() if not _DROPPED.match(name)}
    if shared is not None:
        blocks = sorted({int(m.group(1)) for m in map(_BLOCK.match, converted) if m})
        for block in blocks:
            # A copy each: they are trained apart.
            table = f"blocks.{block}.attn.relative_position_bias_table"
            converted[table] = shared.clone()
    return converted


def _check_is_beit(
    entries: Mapping[str, Tensor], has_shared_table: bool, state_dict: Mapping[str, Tensor]
) -> None:
    required = ["patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.q_bias"]
    if not has_shared_table:
        required.append("blocks.0.attn.relative_position_bias_table")
    missing = [name for name in required if name not in entries]
    # An official adapter or baseline has all of these, too.
    foreign = [name for name in ("level_embed", "fpn1.0.weight") if name in entries]
    if missing or foreign:
        raise ValueError(
            "a pre-trained BEiT has patch_embed, blocks with q_bias and relative position bias "
            f"tables, and no pyramid; {missing} are missing and {foreign} too many among "
            f"{len(state_dict)} entries such as {sorted(state_dict)[:3]}"
        )
