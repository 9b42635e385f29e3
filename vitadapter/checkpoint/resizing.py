"""Fitting a checkpoint's tensors to the sizes of a net."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from timm.models import adapt_input_conv
from torch import Tensor

from vitadapter.checkpoint.beit_tables import resize_relative_position_bias_table

__all__ = ["fit_tensor", "resize_patch_kernel", "resize_pos_embed"]

# Tokens that may stand before the patches in a table of positions: class, distillation, registers.
_MOST_PREFIX_ROWS = 16


def _grid_of(rows: int) -> tuple[int, int]:
    """(prefix rows, side of the square grid) of a table of positions.

    Raises:
        ValueError: the rows are not a square grid with a few prefix tokens.
    """
    side = math.isqrt(rows)
    prefix = rows - side * side
    if prefix > _MOST_PREFIX_ROWS:
        raise ValueError(f"{rows} positions are no square grid with prefix tokens")
    return prefix, side


def resize_pos_embed(pos_embed: Tensor, rows: int) -> Tensor:
    """Absolute positions for another pre-training grid, or with other prefix rows.

    The grid is resized bicubically (``align_corners=False``, no antialias), as the official
    ViT-Adapter resizes it for each image. Prefix rows are kept as far as there is room for them;
    rows that are lacking become 0.

    Args:
        pos_embed: ``(1, P + g * g, C)``, prefix rows first.
        rows: the wanted ``P' + G * G``.

    Returns:
        ``(1, rows, C)``, in float32 where it was interpolated.

    Raises:
        ValueError: one of the two is no square grid with a few prefix rows.
    """
    prefix, side = _grid_of(pos_embed.shape[1])
    new_prefix, new_side = _grid_of(rows)
    grid = pos_embed[:, prefix:]
    if side != new_side:
        grid = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()  # (1, C, g, g)
        grid = F.interpolate(grid, (new_side, new_side), mode="bicubic", align_corners=False)
        grid = grid.flatten(2).transpose(1, 2)
    kept = pos_embed[:, : min(prefix, new_prefix)]
    empty = pos_embed.new_zeros(1, max(new_prefix - prefix, 0), pos_embed.shape[2])
    return torch.cat([kept, empty, grid], dim=1)


def resize_patch_kernel(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Patch embedding for another patch size, by the official ViT-Adapter's DINOv2 recipe.

    Bilinear, ``align_corners=False``, no antialias, values not rescaled.

    Args:
        kernel: ``(C, in_chans, h, w)``.
        size: (height, width) of the wanted patches in pixels.

    Returns:
        ``(C, in_chans, *size)``, in float32.
    """
    return F.interpolate(kernel.float(), size, mode="bilinear", align_corners=False)


def _fit_pos_embed(tensor: Tensor, shape: torch.Size, net: Mapping[str, Tensor]) -> Tensor | None:
    if tensor.ndim != 3 or tensor.shape[::2] != shape[::2]:
        return None
    try:
        (prefix, _), (new_prefix, _) = _grid_of(tensor.shape[1]), _grid_of(shape[1])
    except ValueError:
        return None
    if new_prefix > prefix and "cls_token" in net:
        return None  # its position would be missing
    return resize_pos_embed(tensor, shape[1])


def _fit_patch_kernel(
    tensor: Tensor, shape: torch.Size, net: Mapping[str, Tensor]
) -> Tensor | None:
    if tensor.ndim != 4 or tensor.shape[0] != shape[0]:
        return None
    if tensor.shape[1] != shape[1]:
        if tensor.shape[1] != 3:
            return None
        tensor = adapt_input_conv(shape[1], tensor)
    return tensor if tensor.shape == shape else resize_patch_kernel(tensor, tuple(shape[2:]))


def _fit_spatial_embed(
    tensor: Tensor, shape: torch.Size, net: Mapping[str, Tensor]
) -> Tensor | None:
    fitted = _fit_pos_embed(tensor[None], torch.Size((1, *shape)), net)
    return None if fitted is None else fitted[0]


def _fit_bias_table(tensor: Tensor, shape: torch.Size, net: Mapping[str, Tensor]) -> Tensor | None:
    if tensor.shape[1:] != shape[1:]:
        return None
    try:
        # Interpolated values are not rounded to the file's half precision.
        return resize_relative_position_bias_table(tensor.float(), shape[0])
    except ValueError:
        return None


_Rule = Callable[[Tensor, torch.Size, Mapping[str, Tensor]], Tensor | None]
# By the end of the name: the rule and how the report calls it.
_RULES: Mapping[str, tuple[_Rule, str]] = {
    "spatial_pos_embed.weight": (_fit_spatial_embed, "bicubic"),  # Uni-Perceiver
    "pos_embed": (_fit_pos_embed, "bicubic"),
    "patch_embed.proj.weight": (_fit_patch_kernel, "bilinear"),
    "relative_position_bias_table": (_fit_bias_table, "spline through geometric offsets"),
}


def fit_tensor(
    name: str, tensor: Tensor, net: Mapping[str, Tensor]
) -> tuple[Tensor, str | None] | None:
    """Brings one tensor of a checkpoint to the shape that the net has.

    Args:
        name: of the tensor, relative to the net.
        tensor: of the checkpoint.
        net: state dict of the net, which has this name.

    Returns:
        The tensor in the net's shape with the method by which it was resized (None where it was
        not); None where it cannot be made to fit.
    """
    shape = net[name].shape
    if tensor.shape == shape:
        return tensor, None
    for suffix, (rule, method) in _RULES.items():
        if name.endswith(suffix) and len(shape) == tensor.ndim:
            fitted = rule(tensor, shape, net)
            return None if fitted is None else (fitted, method)
    return None
