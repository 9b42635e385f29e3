"""Linear layers by oneDNN, which keep little for their backward pass."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from vitadapter.layers.fast.onednn import product, uses_onednn
from vitadapter.layers.fast.recompute import Recipe, recipe_of
from vitadapter.layers.fast.switch import are_plain_tensors, is_eager

__all__ = ["Linear", "linear"]


def _backward(
    needs_grad: tuple[bool, ...], grad: Tensor, x: Tensor | None, weight: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``F.linear(x, weight, bias)``, and None for those that nobody needs.

    Args:
        needs_grad: whether x, weight and bias need theirs.
        grad: (..., N), of the output.
        x: (..., K); None where the weight needs no gradient.
        weight: (N, K).

    Returns:
        Gradients of x, weight and bias.
    """
    needs_x, needs_weight, needs_bias = needs_grad
    grad_x = grad_weight = grad_bias = None
    # Gradients of gradients (create_graph) need operators that have one.
    onednn = uses_onednn(grad, x, weight) and not torch.is_grad_enabled()
    if onednn:
        grad = grad.contiguous()
    rows = grad.flatten(0, -2)
    if needs_x:
        # Under autocast grad is of a half type, the weight float32.
        grad_x = product(grad, weight.t()) if onednn else grad @ weight.to(grad.dtype)
    if needs_weight:
        x_rows = x.flatten(0, -2)
        if not onednn:
            grad_weight = rows.t() @ x_rows.to(grad.dtype)
        elif weight.shape[0] >= weight.shape[1]:
            # The larger factor second: up to 1.5 times as fast.
            grad_weight = product(x_rows.t(), rows.t()).t().contiguous()
        else:
            grad_weight = product(rows.t(), x_rows.t())
    if needs_bias:
        grad_bias = rows.sum(0)
    return grad_x, grad_weight, grad_bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe | None
    ) -> Tensor:
        ctx.recipe = recipe
        inputs: tuple[Tensor | None, ...] = ()
        if ctx.needs_input_grad[1]:
            inputs = (x,) if recipe is None else recipe.inputs
        ctx.save_for_backward(weight, *inputs)
        return (
            product(x, weight, bias) if uses_onednn(x, weight, bias) else F.linear(x, weight, bias)
        )

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *inputs = ctx.saved_tensors
        x = None
        if inputs:
            x = inputs[0] if ctx.recipe is None else ctx.recipe.run(inputs)
        return *_backward(ctx.needs_input_grad[:3], grad, x, weight), None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, by oneDNN where ``uses_onednn`` says so.

    Keeps for the backward pass what ``x`` is made of instead of ``x``, where it is ``recomputed``.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,).

    Returns:
        (..., N).
    """
    plain = is_eager() and are_plain_tensors(x, weight, bias)
    if not plain or x.dim() < 2 or x.shape[-1] != weight.shape[-1]:
        return F.linear(x, weight, bias)
    recipe, onednn = recipe_of(x), uses_onednn(x, weight, bias)
    trained = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    )
    if trained and (onednn or recipe is not None):
        return _Linear.apply(x, weight, bias, recipe)
    return product(x, weight, bias) if onednn else F.linear(x, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` through ``linear``: same arguments, initialisation and state dict."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias)
