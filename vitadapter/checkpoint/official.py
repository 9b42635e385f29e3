"""Checkpoints of the official ViT-Adapter release (mmcv state dicts)."""

from collections.abc import Mapping

from torch import Tensor

__all__ = ["convert_official_backbone", "export_official_backbone"]

_REQUIRED = ("patch_embed.proj.weight", "pos_embed", "norm1.weight")
# What the official classes, which subclass their ViT, keep beside the adapter's own entries.
_NET_PREFIXES = ("patch_embed.", "pos_embed", "blocks.")


def convert_official_backbone(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official plain-ViT backbone to ``ViTAdapter`` or ``ViTBaseline`` over ``ViT``.

    The official backbones are subclasses of their ViT, ours wrap it: the ViT's entries move under
    ``net.``; all other names agree.

    Args:
        state_dict: entries of the official ``ViTAdapter`` or ``ViTBaseline``, without the
            ``backbone.`` that a whole detector or segmenter puts before them.

    Returns:
        A new dict with the same tensors.

    Raises:
        ValueError: the entries are not those of an official plain-ViT backbone.
    """
    # BEiT and Uni-Perceiver have no pos_embed, a bare pre-trained ViT has no norm1.
    missing = [name for name in _REQUIRED if name not in state_dict]
    if missing:
        raise ValueError(
            f"an official plain-ViT backbone has {', '.join(_REQUIRED)}, but {missing} are missing "
            f"among {len(state_dict)} entries such as {sorted(state_dict)[:3]}"
        )
    return {
        f"net.{name}" if name.startswith(_NET_PREFIXES) else name: tensor
        for name, tensor in state_dict.items()
    }


def export_official_backbone(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_official_backbone`.

    Args:
        state_dict: of ``ViTAdapter`` or ``ViTBaseline``.

    Returns:
        A new dict with the same tensors.
    """
    return {name.removeprefix("net."): tensor for name, tensor in state_dict.items()}
