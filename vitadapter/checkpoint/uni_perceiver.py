"""Pre-trained Uni-Perceiver (github.com/fundamentalvision/Uni-Perceiver), to our net."""

from collections.abc import Mapping

from torch import Tensor

__all__ = ["convert_uni_perceiver"]

# From the original names to those of the converted files that the official ViT-Adapter loads, in
# order; the last row is ours.
_RENAMES = (
    ("fused_encoder.", ""),
    ("in_proj_", "in_proj."),
    ("video_embed.", "visual_embed."),
    ("visual_embed.embeddings.", "visual_embed.patch_embed.proj."),
    ("visual_embed.embeddings_st_pos.", "visual_embed.patch_embed."),
    ("layers.", "blocks."),
)
_DROPPED = ("loss_prepare", "token_embed")
_REQUIRED = ("visual_embed.patch_embed.proj.weight", "blocks.0.self_attn.in_proj.weight")


def convert_uni_perceiver(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pre-trained Uni-Perceiver to the names of our net.

    Args:
        state_dict: entries of the original file (``uni-perceiver-*-pretrained.pth``, without its
            outer ``model``), of the file converted for the official ViT-Adapter, or of our net.

    Returns:
        A new dict with the image encoder alone; names as in ``UniPerceiver.state_dict()``.

    Raises:
        ValueError: the entries are not those of a Uni-Perceiver.
    """
    entries = {
        _rename(name): tensor
        for name, tensor in state_dict.items()
        if not any(part in name for part in _DROPPED)
    }
    missing = [name for name in _REQUIRED if name not in entries]
    # The official adapter has all of these, too.
    if missing or "level_embed" in entries:
        raise ValueError(
            f"a pre-trained Uni-Perceiver has {' and '.join(_REQUIRED)} (or their original names) "
            f"and no level_embed, got {len(state_dict)} entries such as {sorted(state_dict)[:3]}"
        )
    # Encoders of other modalities, type embedding and final norms are not the image encoder's.
    return {
        name: tensor
        for name, tensor in entries.items()
        if name.startswith(("blocks.", "visual_embed."))
    }


def _rename(name: str) -> str:
    for old, new in _RENAMES:
        name = name.replace(old, new)
    return name
