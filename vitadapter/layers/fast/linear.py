"""Linear layers that keep little for their backward pass.

Their products are PyTorch's own or, where the processor makes it worth it, oneDNN's: see
`vitadapter.layers.fast.products`.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitadapter.layers.fast.products import is_by_onednn, product
from vitadapter.layers.fast.recompute import Computation, Recipe, recipe_of
from vitadapter.layers.fast.switch import are_plain_tensors, is_eager, is_plain

__all__ = ["linear", "run_linear"]


class _Context(Protocol):
    """What `_Linear` uses of autograd's context."""

    computation: Computation | None
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _Linear(torch.autograd.Function):
    """`product`, which computes `x` again in the backward pass if it has a recipe."""

    @staticmethod
    def forward(
        ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe | None
    ) -> Tensor:
        ctx.computation = None if recipe is None else recipe.computation
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        inputs = (x,) if recipe is None else recipe.inputs
        ctx.save_for_backward(weight if needs_x else None, *(inputs if needs_weight else ()))
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *inputs = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])  # `flatten` takes no batch of gradients
        grad_x = grad_weight = None
        # `linear` can be differentiated again.
        if needs_x:
            # Under autocast, grad has a half-precision dtype and the weight is float32.
            grad_x = linear(grad, weight.to(grad.dtype).t())
        if needs_weight:
            x = inputs[0] if ctx.computation is None else ctx.computation.run(inputs)
            grad_weight = linear(rows.t(), x.reshape(-1, x.shape[-1]).to(grad.dtype).t())
        return grad_x, grad_weight, rows.sum(0) if needs_bias else None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, which keeps the inputs of a `recomputed` `x` instead of `x` itself.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,).

    Returns:
        (..., N).
    """
    trained = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    )
    if not trained:
        return product(x, weight, bias)
    recipe = recipe_of(x) if is_eager() and are_plain_tensors(x, weight, bias) else None
    if x.dim() < 2 or (recipe is None and not is_by_onednn(x, weight, bias)):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias, recipe)


def _dtype_of_product(weight: Tensor) -> torch.dtype:
    kind = weight.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def run_linear(layer: nn.Module, x: Tensor, gamma: Tensor | None = None) -> Tensor:
    """`gamma * layer(x)`, computed by `linear` if the layer is a plain `nn.Linear`.

    With more rows than input channels, gamma scales the weights, since there are fewer of them. Its
    own gradient then needs no output to be kept.

    Args:
        layer: (..., in_features) to (..., out_features): `nn.Linear` or what a user replaced it by
            (see `is_plain`).
        x: (..., in_features), usually `recomputed`.
        gamma: layer scale (out_features,); None for none.

    Returns:
        (..., out_features).
    """
    if not (is_eager() and is_plain(layer, nn.Linear)):
        return layer(x) if gamma is None else gamma * layer(x)
    weight, bias = layer.weight, layer.bias
    if gamma is None:
        return linear(x, weight, bias)
    scales_weights = (
        x.numel() > x.shape[-1] ** 2
        and are_plain_tensors(gamma)
        and gamma.dtype == weight.dtype
        and _dtype_of_product(weight) != torch.float16  # whose range is too small for that
    )
    if not scales_weights:
        return gamma * linear(x, weight, bias)
    return linear(x, gamma[:, None] * weight, None if bias is None else gamma * bias)
