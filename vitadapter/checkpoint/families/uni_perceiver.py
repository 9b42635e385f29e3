"""Pre-trained Uni-Perceiver (github.com/fundamentalvision/Uni-Perceiver), for our net."""

from collections.abc import Mapping

from torch import Tensor

from vitadapter.checkpoint.family import HEAD, Conversion, Family, check_names, convert_names

__all__ = ["UNI_PERCEIVER", "convert_uni_perceiver"]

# From the original names to those of the converted files that the official ViT-Adapter loads, in
# order; the last row is ours.
_RENAMED = (
    (r"fused_encoder\.", ""),
    (r"in_proj_", "in_proj."),
    (r"video_embed\.", "visual_embed."),
    (r"visual_embed\.embeddings\.", "visual_embed.patch_embed.proj."),
    (r"visual_embed\.embeddings_st_pos\.", "visual_embed.patch_embed."),
    (r"layers\.", "blocks."),
)
_NEEDED = ("visual_embed.patch_embed.proj.weight", "blocks.0.self_attn.in_proj.weight")


def convert_uni_perceiver(state_dict: Mapping[str, Tensor]) -> Conversion:
    """Converts a pre-trained Uni-Perceiver to the names of our net.

    Args:
        state_dict: entries of the original file (`uni-perceiver-*-pretrained.pth`, without its
            outer `model`), of the file converted for the official ViT-Adapter, or of our net.

    Returns:
        The image encoder alone.

    Raises:
        ValueError: the entries are not those of a Uni-Perceiver.
    """
    drop = {r".*(loss_prepare|token_embed)": HEAD}
    conversion = convert_names(state_dict, drop=drop, rename=_RENAMED)
    check_names("a pre-trained Uni-Perceiver", _NEEDED, state_dict, conversion.tensors)
    # Encoders of other modalities, type embedding and final norms.
    for name in list(conversion.tensors):
        if not name.startswith(("blocks.", "visual_embed.")):
            conversion.take(name, "not part of the image encoder")
    return conversion


UNI_PERCEIVER = Family(
    "uni_perceiver",
    "Uni-Perceiver, as published or as converted for the official ViT-Adapter",
    lambda state_dict: any(n.startswith(("visual_embed.", "video_embed.")) for n in state_dict),
    convert_uni_perceiver,
)
