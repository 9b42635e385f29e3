"""Fitting a checkpoint's tensors to a model: which values may go into it, in which shapes."""

import math
import re
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from timm.models import adapt_input_conv
from torch import Tensor

from vitadapter.checkpoint.family import Conversion, Resized, entries_below, first_few
from vitadapter.modeling.backbone.nets.relative_position import spline_matrix

__all__ = [
    "check_dense",
    "check_finite",
    "check_type",
    "count_non_finite",
    "fit",
    "fit_tensor",
    "prefix_rows",
    "resize_patch_kernel",
    "resize_pos_embed",
    "resize_relative_position_bias_table",
]

# Sides of patches may differ by this factor, as DINOv2's 14 pixels and our 16 do. A kernel that is
# stretched further, from 32 pixels or from 8, no longer sees what it was trained on.
_MOST_PATCH_SCALING = 1.5
# Smallest ratio of the geometric progression in the official loader.
_LOWEST_RATIO = 1.01
# Rows that follow the offsets: class token to token, token to class token, class token to itself.
_CLS_ROWS = 3
# Tokens that pre-training kept beside the patches. A net without them does not need them.
_TOKENS = re.compile(r"(.*\.)?(cls_token|dist_token|reg_token|register_tokens|storage_tokens)$")
# What followed the blocks. It has the width of the adapter's own norms, but is none of them.
_FINAL_NORM = re.compile(r"norm\.(weight|bias)")
_UNUSED = {
    _TOKENS: "the net has no such token",
    _FINAL_NORM: 'final norm of the net, which ViTAdapter(feature_norm="net") uses',
}

_State = Mapping[str, Tensor]


def check_dense(tensors: Mapping[str, Tensor], *, allow_meta: bool) -> None:
    """Refuses tensors that do not store each of their values.

    Args:
        tensors: by name.
        allow_meta: whether tensors on the meta device are allowed, as for a model that is there.

    Raises:
        ValueError: one is sparse, quantised, nested or without values.
    """
    for name, tensor in tensors.items():
        kinds = {
            "sparse": tensor.layout != torch.strided,
            "quantised": tensor.is_quantized,
            "nested": tensor.is_nested,
            "without values": tensor.is_meta and not allow_meta,
        }
        for kind, is_so in kinds.items():
            if is_so:
                raise ValueError(f"{name} is {kind}, but only dense tensors can be loaded")


def check_type(name: str, tensor: Tensor, wanted: Tensor) -> None:
    """Refuses numbers of the wrong kind; a different precision is no obstacle.

    Args:
        name: for the message.
        tensor: of the file.
        wanted: of the model.

    Raises:
        ValueError: complex numbers, codes of a quantised model, or fractions instead of counts.
    """
    message = f"{name} is {tensor.dtype}, the model has {wanted.dtype}"
    if tensor.is_complex() or (wanted.is_floating_point() and not tensor.is_floating_point()):
        raise ValueError(message)
    if tensor.is_meta or tensor.dtype == wanted.dtype or wanted.is_floating_point():
        return
    if not torch.equal(tensor.to(wanted.dtype).to(tensor.dtype), tensor):
        raise ValueError(f"{message}, which cannot hold its values")


def count_non_finite(tensor: Tensor) -> int:
    """Number of values that are NaN or infinite; quick where there are none."""
    if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
        return 0
    if tensor.dtype.itemsize == 1:  # has no minimum
        tensor = tensor.float()
    # One pass without a mask, in which NaN is both the least and the greatest.
    if all(bound.isfinite() for bound in tensor.aminmax()):
        return 0
    return int((~tensor.isfinite()).sum())


def check_finite(tensors: Mapping[str, Tensor], model: Mapping[str, Tensor] | None = None) -> None:
    """Refuses values that are NaN or infinite.

    Args:
        tensors: by name.
        model: state dict that they are copied into. If it is given, they are checked after
            rounding to its precision, and need not be finite where its entries are not.

    Raises:
        ValueError: there are such values; names the tensors and counts the values.
    """
    found = []
    for name, tensor in tensors.items():
        wanted = None if model is None else model[name]
        count = count_non_finite(tensor if wanted is None else tensor.to(wanted.dtype))
        if count and (wanted is None or not count_non_finite(wanted)):
            found.append(f"{name} ({count} of {tensor.numel()})")
    if found:
        rounded = "" if model is None else ", in the model's precision"
        raise ValueError(
            f"{len(found)} of its tensors have values that are NaN or infinite{rounded}: "
            f"{first_few(found)}"
        )


def prefix_rows(rows: int, tokens: Mapping[str, Tensor]) -> int:
    """How many rows of a table of positions precede those of a square grid of patches.

    Args:
        rows: of the table.
        tokens: the state dict that has the table. All of its tokens have rows, or none has (timm's
            `no_embed_class`), or only the class token has one. There may be a class token's row
            without the token, because Detectron2's ViT keeps no token.

    Raises:
        ValueError: the other rows are not a square grid.
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
            f"{rows} positions are not a square grid after {' or '.join(map(str, counts))} rows "
            "for the tokens that are there"
        )
    return fitting[0]


def _side(rows: int, prefix: int) -> int:
    side = math.isqrt(max(rows - prefix, 0))
    if side == 0 or side**2 != rows - prefix:
        raise ValueError(f"{rows} positions are not a square grid after {prefix} rows")
    return side


def resize_pos_embed(pos_embed: Tensor, prefix: int, rows: int, new_prefix: int) -> Tensor:
    """Absolute positions for another pre-training grid, or with other prefix rows.

    The grid is resized bicubically (`align_corners=False`, no antialias), as the official
    ViT-Adapter resizes it for each image. Prefix rows are kept as far as there is room for them,
    and missing ones become 0.

    Args:
        pos_embed: `(1, P + g * g, C)`, prefix rows first.
        prefix: P.
        rows: the wanted `P' + G * G`.
        new_prefix: P'.

    Returns:
        `(1, rows, C)`, in float32 if it was interpolated.

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
    """Resizes a patch embedding as the official ViT-Adapter does for DINOv2.

    This is bilinear, with `align_corners=False` and no antialias; values are not rescaled.

    Args:
        kernel: `(C, in_chans, h, w)`.
        size: (height, width) of the wanted patches in pixels.

    Returns:
        `(C, in_chans, *size)`, in float32.
    """
    return F.interpolate(kernel.float(), size, mode="bilinear", align_corners=False)


def resize_relative_position_bias_table(table: Tensor, new_rows: int) -> Tensor:
    """Resizes the table of a square grid as the official loader of BEiT weights does.

    It uses a bicubic spline through geometrically spaced offsets (see `spline_matrix`). The three
    rows of the class token are kept, or left out if `new_rows` has no place for them.

    Args:
        table: (N, heads), N = (2g - 1)^2 offsets of a g x g grid, perhaps 3 more for the class
            token.
        new_rows: the same for the wanted grid: 729 for windows of 14 without class token, 732 with
            one, 12321 for windows of 56, 3972 for images of 512 pixels with class token, ...

    Returns:
        (new_rows, heads), of the same type. Offsets of the right size are not changed.

    Raises:
        ValueError: the rows are not those of a square grid, or rows of a class token are wanted
            but missing.
    """
    side, has_cls_rows = _table_side(table.shape[0])
    new_side, wants_cls_rows = _table_side(new_rows)
    if wants_cls_rows and not has_cls_rows:
        raise ValueError(
            f"a table of {table.shape[0]} rows has none for the class token, "
            f"which {new_rows} rows would need"
        )
    offsets = table[: side**2]
    if new_side != side:
        matrix = torch.tensor(spline_matrix(side, new_side, _LOWEST_RATIO), device=table.device)
        grid = offsets.to(torch.float64).unflatten(0, (side, side))
        offsets = torch.einsum("yi,xj,ijh->yxh", matrix, matrix, grid).flatten(0, 1)
    offsets = offsets.to(table.dtype)
    return torch.cat([offsets, table[side**2 :]]) if wants_cls_rows else offsets.clone()


def _table_side(rows: int) -> tuple[int, bool]:
    """2g - 1 for a table with `rows` rows, and whether they include the class token's."""
    for extra in (0, _CLS_ROWS):
        side = math.isqrt(max(rows - extra, 0))
        if side**2 + extra == rows and side % 2 == 1:
            return side, extra > 0
    raise ValueError(
        f"a table for a square grid of g x g tokens has (2g - 1)^2 rows, with a class token 3 "
        f"more, got {rows}"
    )


def _fit_pos_embed(tensor: Tensor, shape: torch.Size, file: _State, net: _State) -> Tensor:
    if tensor.shape[::2] != shape[::2]:
        raise ValueError("positions have the wrong width")
    prefix, new_prefix = prefix_rows(tensor.shape[1], file), prefix_rows(shape[1], net)
    if new_prefix > prefix and "cls_token" in net:
        raise ValueError("the position of the class token is missing")
    return resize_pos_embed(tensor, prefix, shape[1], new_prefix)


def _fit_patch_kernel(tensor: Tensor, shape: torch.Size, file: _State, net: _State) -> Tensor:
    if tensor.shape[0] != shape[0]:
        raise ValueError("patches have the wrong width")
    sides = list(zip(tensor.shape[2:], shape[2:], strict=True))
    if any(max(pair) > _MOST_PATCH_SCALING * min(pair) for pair in sides):
        before, after = (" x ".join(map(str, pixels)) for pixels in (tensor.shape[2:], shape[2:]))
        raise ValueError(
            f"patches of {before} pixels cannot stand for {after}: sides may differ by a factor of "
            f"{_MOST_PATCH_SCALING}"
        )
    if tensor.shape[1] != shape[1]:
        if tensor.shape[1] != 3:
            raise ValueError("images have the wrong number of channels, and it is not 3")
        tensor = adapt_input_conv(shape[1], tensor)
    return tensor if tensor.shape == shape else resize_patch_kernel(tensor, (shape[2], shape[3]))


def _fit_spatial_embed(tensor: Tensor, shape: torch.Size, file: _State, net: _State) -> Tensor:
    if tensor.shape[1] != shape[1]:
        raise ValueError("positions have the wrong width")
    return resize_pos_embed(tensor[None], 0, shape[0], 0)[0]


def _fit_bias_table(tensor: Tensor, shape: torch.Size, file: _State, net: _State) -> Tensor:
    if tensor.shape[1:] != shape[1:]:
        raise ValueError("it has the wrong number of heads")
    # Interpolated values are not rounded to the file's half precision.
    return resize_relative_position_bias_table(tensor.float(), shape[0])


def _fit_relative_position(tensor: Tensor, shape: torch.Size, file: _State, net: _State) -> Tensor:
    """As Detectron2's ViT resizes (2 * side - 1, head_dim) for another window or image."""
    if tensor.shape[1] != shape[1]:
        raise ValueError("relative positions have the wrong width")
    return F.interpolate(tensor.float().T[None], shape[0], mode="linear")[0].T


_Rule = Callable[[Tensor, torch.Size, _State, _State], Tensor]
# By the end of a name: the rule, and what the report calls it.
_RULES: Mapping[str, tuple[_Rule, str]] = {
    "spatial_pos_embed.weight": (_fit_spatial_embed, "bicubic"),  # Uni-Perceiver
    "pos_embed": (_fit_pos_embed, "bicubic"),
    "patch_embed.proj.weight": (_fit_patch_kernel, "bilinear"),
    "rel_pos_h": (_fit_relative_position, "linear"),
    "rel_pos_w": (_fit_relative_position, "linear"),
    "relative_position_bias_table": (_fit_bias_table, "spline through geometric offsets"),
}


def fit_tensor(name: str, file: _State, net: _State) -> tuple[Tensor, str]:
    """Brings one tensor of a checkpoint to the shape that the net has.

    Args:
        name: of the tensor, relative to the net.
        file: what the checkpoint has for the net, including this name.
        net: state dict of the net, including this name.

    Returns:
        The tensor in the net's shape, and the method by which it was resized ("" if it was not).

    Raises:
        ValueError: it cannot be made to fit. The message says why, and is empty if tensors of this
            name cannot be resized.
    """
    tensor, shape = file[name], net[name].shape
    if tensor.shape == shape:
        return tensor, ""
    for suffix, (rule, method) in _RULES.items():
        if name.endswith(suffix) and len(shape) == tensor.ndim:
            return rule(tensor, shape, file, net), method
    raise ValueError


def fit(conversion: Conversion, state: _State, prefix: str | None, *, resize: bool) -> None:
    """Brings the tensors of a conversion to a model's shapes and removes those that do not fit.

    Args:
        conversion: with names relative to the model. It is changed, and says what became of each
            tensor.
        state: state dict of the model.
        prefix: of the net's names; None without a net.
        resize: whether tensors of the net may be resized.

    Raises:
        ValueError: numbers are of the wrong kind, NaN or infinite.
    """
    found, conversion.tensors = conversion.tensors, {}
    file, net = ({} if prefix is None else entries_below(x, prefix) for x in (found, state))
    for name, tensor in found.items():
        inner = None if prefix is None or not name.startswith(prefix) else name[len(prefix) :]
        if name not in state:
            reasons = [why for pattern, why in _UNUSED.items() if inner and pattern.match(inner)]
            if reasons:
                conversion.dropped[name] = reasons[0]
            else:
                conversion.unexpected.append(name)
            continue
        check_type(name, tensor, state[name])
        before, after = tuple(tensor.shape), tuple(state[name].shape)
        try:
            if before == after:
                conversion.tensors[name] = tensor
            elif inner is None or not resize:
                raise ValueError
            else:
                conversion.tensors[name], method = fit_tensor(inner, file, net)
                conversion.resized[name] = Resized(before, after, method)
        except ValueError as error:
            why = f" ({error})" if str(error) else ""
            conversion.wrong_shape[name] = f"{before} in the file, {after} here{why}"
    check_finite(conversion.tensors, state)
