"""Fitting a checkpoint's tensors to the sizes of a net."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from timm.models import adapt_input_conv
from torch import Tensor

from vitadapter.checkpoint.beit_tables import resize_relative_position_bias_table

__all__ = ["fit_tensor", "prefix_rows", "resize_patch_kernel", "resize_pos_embed"]

# Sides of patches may differ by this factor, as DINOv2's 14 pixels and our 16 do: a kernel that is
# stretched further, from 32 pixels or from 8, sees other things than it was trained on.
_MOST_PATCH_SCALING = 1.5


def prefix_rows(rows: int, tokens: Mapping[str, Tensor]) -> int:
    """How many rows of a table of positions stand before those of a square grid of patches.

    Args:
        rows: of the table.
        tokens: the state dict that has the table. Its tokens have rows each, or none (timm's
            ``no_embed_class``), or the class token alone has one. A class token's row may be there
            without it: Detectron2's ViT keeps no token.

    Raises:
        ValueError: the other rows are no square grid.
    """

    def number(*names: str) -> int:
        found = [tokens[name].shape for name in names if name in tokens]
        return sum(shape[-2] if len(shape) > 1 else 1 for shape in found)

    registers = number("reg_token", "register_tokens", "storage_tokens")
    distilled = number("dist_token")
    counts = sorted({0, 1, 1 + distilled, number("cls_token") + distilled + registers})
    fitting = [n for n in counts if rows > n and math.isqrt(rows - n) ** 2 == rows - n]
    if len(fitting) != 1:
        raise ValueError(
            f"{rows} positions are no square grid after {' or '.join(map(str, counts))} rows for "
            "the tokens that are there"
        )
    return fitting[0]


def _side(rows: int, prefix: int) -> int:
    side = math.isqrt(max(rows - prefix, 0))
    if side == 0 or side**2 != rows - prefix:
        raise ValueError(f"{rows} positions are no square grid after {prefix} rows")
    return side


def resize_pos_embed(pos_embed: Tensor, prefix: int, rows: int, new_prefix: int) -> Tensor:
    """Absolute positions for another pre-training grid, or with other prefix rows.

    The grid is resized bicubically (``align_corners=False``, no antialias), as the official
    ViT-Adapter resizes it for each image. Prefix rows are kept as far as there is room for them;
    rows that are lacking become 0.

    Args:
        pos_embed: ``(1, P + g * g, C)``, prefix rows first.
        prefix: P.
        rows: the wanted ``P' + G * G``.
        new_prefix: P'.

    Returns:
        ``(1, rows, C)``, in float32 where it was interpolated.

    Raises:
        ValueError: one of the two grids is not square.
    """
    side, new_side = _side(pos_embed.shape[1], prefix), _side(rows, new_prefix)
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


_State = Mapping[str, Tensor]


def _fit_pos_embed(tensor: Tensor, shape: torch.Size, file: _State, net: _State) -> Tensor:
    if tensor.shape[::2] != shape[::2]:
        raise ValueError("positions are of another width")
    prefix, new_prefix = prefix_rows(tensor.shape[1], file), prefix_rows(shape[1], net)
    if new_prefix > prefix and "cls_token" in net:
        raise ValueError("the position of the class token is missing")
    return resize_pos_embed(tensor, prefix, shape[1], new_prefix)


def _fit_patch_kernel(tensor: Tensor, shape: torch.Size, file: _State, net: _State) -> Tensor:
    if tensor.shape[0] != shape[0]:
        raise ValueError("patches are of another width")
    sides = list(zip(tensor.shape[2:], shape[2:], strict=True))
    if any(max(pair) > _MOST_PATCH_SCALING * min(pair) for pair in sides):
        before, after = (" x ".join(map(str, pixels)) for pixels in (tensor.shape[2:], shape[2:]))
        raise ValueError(
            f"patches of {before} pixels cannot stand for {after}: sides may differ by a factor of "
            f"{_MOST_PATCH_SCALING}"
        )
    if tensor.shape[1] != shape[1]:
        if tensor.shape[1] != 3:
            raise ValueError("images are of another number of channels, and not of 3")
        tensor = adapt_input_conv(shape[1], tensor)
    return tensor if tensor.shape == shape else resize_patch_kernel(tensor, tuple(shape[2:]))


def _fit_spatial_embed(tensor: Tensor, shape: torch.Size, file: _State, net: _State) -> Tensor:
    if tensor.shape[1] != shape[1]:
        raise ValueError("positions are of another width")
    return resize_pos_embed(tensor[None], 0, shape[0], 0)[0]


def _fit_bias_table(tensor: Tensor, shape: torch.Size, file: _State, net: _State) -> Tensor:
    if tensor.shape[1:] != shape[1:]:
        raise ValueError("it is for another number of heads")
    # Interpolated values are not rounded to the file's half precision.
    return resize_relative_position_bias_table(tensor.float(), shape[0])


_Rule = Callable[[Tensor, torch.Size, _State, _State], Tensor]
# By the end of the name: the rule and how the report calls it.
_RULES: Mapping[str, tuple[_Rule, str]] = {
    "spatial_pos_embed.weight": (_fit_spatial_embed, "bicubic"),  # Uni-Perceiver
    "pos_embed": (_fit_pos_embed, "bicubic"),
    "patch_embed.proj.weight": (_fit_patch_kernel, "bilinear"),
    "relative_position_bias_table": (_fit_bias_table, "spline through geometric offsets"),
}


def fit_tensor(name: str, file: _State, net: _State) -> tuple[Tensor, str | None]:
    """Brings one tensor of a checkpoint to the shape that the net has.

    Args:
        name: of the tensor, relative to the net.
        file: what the checkpoint has for the net, which has this name.
        net: state dict of the net, which has this name.

    Returns:
        The tensor in the net's shape with the method by which it was resized, None where it was
        not.

    Raises:
        ValueError: it cannot be made to fit; says why, nothing where another size never fits.
    """
    tensor, shape = file[name], net[name].shape
    if tensor.shape == shape:
        return tensor, None
    for suffix, (rule, method) in _RULES.items():
        if name.endswith(suffix) and len(shape) == tensor.ndim:
            return rule(tensor, shape, file, net), method
    raise ValueError
