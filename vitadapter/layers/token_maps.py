"""Tokens that are maps, one after the other and row by row, and their depthwise convolution.

The convolution is an operator, for `torch.compile`: Inductor cannot compile the gradient of a
convolution for more than one size of image (as of torch 2.14), and calls an operator as it is.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["depthwise_conv", "join_maps", "split_maps"]

Sizes = Sequence[tuple[int, int]]


def split_maps(tokens: Tensor, sizes: Sizes) -> list[Tensor]:
    """Views tokens as channels-last maps.

    It does not use `transpose` before `unflatten`: for one image, that results in a batch stride
    for which the CPU backward pass of batch norm has wrong gradients (seen in torch 2.14.1).

    Args:
        tokens: (B, N, C).
        sizes: (height, width) of each map; N is the sum of their products.

    Returns:
        Maps (B, C, height, width).
    """
    levels = tokens.split([h * w for h, w in sizes], dim=1)
    return [x.unflatten(1, hw).permute(0, 3, 1, 2) for x, hw in zip(levels, sizes, strict=True)]


def join_maps(maps: Sequence[Tensor]) -> Tensor:
    """Returns the tokens (B, N, C) of maps (B, C, height, width), as `split_maps` takes them."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


def depthwise_conv(tokens: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sizes) -> Tensor:
    """Convolves the maps that tokens consist of, each channel by itself.

    Args:
        tokens: (B, N, C).
        weight: (C, 1, 3, 3).
        bias: (C,).
        sizes: see `split_maps`.

    Returns:
        Tokens (B, N, C).
    """
    # As autocast has it for the convolution.
    weight, bias = weight.to(tokens.dtype), None if bias is None else bias.to(tokens.dtype)
    return _forward(tokens, weight, bias, [side for size in sizes for side in size])


def _sizes(sides: list[int]) -> Sizes:
    """Sizes in the form in which operators take them."""
    return list(zip(sides[::2], sides[1::2], strict=True))


@torch.library.custom_op("vitadapter::depthwise_conv", mutates_args=())
def _forward(tokens: Tensor, weight: Tensor, bias: Tensor | None, sides: list[int]) -> Tensor:
    groups = len(weight)
    maps = split_maps(tokens, _sizes(sides))
    return join_maps([F.conv2d(x, weight, bias, 1, 1, 1, groups) for x in maps])


@torch.library.custom_op("vitadapter::depthwise_conv_backward", mutates_args=())
def _backward(
    grad: Tensor, tokens: Tensor, weight: Tensor, sides: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    groups, sizes = len(weight), _sizes(sides)
    grads, of_weight, of_bias = zip(
        *(
            torch.ops.aten.convolution_backward(
                grad_map, x, weight, [groups], [1, 1], [1, 1], [1, 1], False, [0, 0], groups,
                [True, True, True],
            )
            for grad_map, x in zip(split_maps(grad, sizes), split_maps(tokens, sizes), strict=True)
        ),
        strict=True,
    )  # fmt: skip
    return join_maps(grads), sum(of_weight), sum(of_bias)


@_forward.register_fake
def _(tokens: Tensor, weight: Tensor, bias: Tensor | None, sides: list[int]) -> Tensor:
    return tokens.new_empty(tokens.shape)


@_backward.register_fake
def _(
    grad: Tensor, tokens: Tensor, weight: Tensor, sides: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return tokens.new_empty(tokens.shape), torch.empty_like(weight), weight.new_empty(len(weight))


def _keep(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, list[int]], output: Tensor
) -> None:
    tokens, weight, bias, ctx.sides = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(tokens, weight)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
    of_tokens, of_weight, of_bias = _backward(grad, *ctx.saved_tensors, ctx.sides)
    return of_tokens, of_weight, of_bias if ctx.has_bias else None, None


_forward.register_autograd(_gradients, setup_context=_keep)
