"""Linear layers that keep little for their backward pass."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from vitadapter.layers.fast.recompute import Recipe, recipe_of
from vitadapter.layers.fast.switch import are_plain_tensors, is_eager

__all__ = ["Linear", "linear"]


class _Linear(torch.autograd.Function):
    """``F.linear`` that makes ``x`` again in the backward pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe
    ) -> Tensor:
        ctx.recipe = recipe
        ctx.save_for_backward(weight, *(recipe.inputs if ctx.needs_input_grad[1] else ()))
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *inputs = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        grad_x = grad_weight = None
        if needs_x:
            # Under autocast grad is of a half type, the weight float32.
            grad_x = grad @ weight.to(grad.dtype)
        if needs_weight:
            x = ctx.recipe.run(inputs)
            grad_weight = rows.t() @ x.flatten(0, -2).to(grad.dtype)
        return grad_x, grad_weight, rows.sum(0) if needs_bias else None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, which keeps what ``x`` is made of instead of ``x``, where it is ``recomputed``.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,).

    Returns:
        (..., N).
    """
    recipe = recipe_of(x) if is_eager() and are_plain_tensors(x, weight, bias) else None
    trained = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    )
    if recipe is None or not trained or x.dim() < 2:
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias, recipe)


class Linear(nn.Linear):
    """``nn.Linear`` through ``linear``: same arguments, initialisation and state dict."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias)
