"""Linear layers that keep little for their backward pass.

Matrix products are PyTorch's own. For float32 on the CPU, oneDNN (through Inductor's private
`mkldnn._linear_pointwise`) was tried in place of PyTorch's BLAS (MKL) and rejected. On AMD's EPYC
(Zen 5), oneDNN reaches 200 GFLOP/s per core, and MKL, which does not use AVX-512 there, 90. But on
Intel's Xeon (Sapphire Rapids), oneDNN is no faster in the forward pass and slower in training, and
attention built from such products takes 1.4 to 2 times as long as PyTorch's own. These are CPU
milliseconds of MKL / oneDNN on one thread of the Xeon, from `scripts/benchmark_products.py`:

=========================  ================  ==================  =============  ==================
tokens x channels x out    forward, AVX-512  training, AVX-512   forward, AVX2  training, AVX2
=========================  ================  ==================  =============  ==================
3800 x 192 x 768           7.7 / 7.9         25.1 / 29.1         11.1 / 14.1    37.9 / 45.0
3800 x 768 x 192           7.8 / 7.7         23.8 / 27.2         13.2 / 12.1    36.2 / 44.9
19950 x 192 x 192          13.3 / 13.4       44.6 / 55.0         16.4 / 17.2    50.2 / 65.9
3800 x 384 x 1536          35.8 / 41.0       91.5 / 145.7        46.0 / 49.0    144.2 / 247.7
3800 x 1536 x 384          27.4 / 29.0       84.5 / 132.1        49.5 / 49.9    144.7 / 244.9
19950 x 384 x 384          46.9 / 50.0       137.5 / 178.2       63.7 / 61.7    195.9 / 252.1
=========================  ================  ==================  =============  ==================
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitadapter.layers.fast.recompute import Computation, Recipe, recipe_of
from vitadapter.layers.fast.switch import are_plain_tensors, is_eager, is_plain

__all__ = ["linear", "run_linear"]


class _Context(Protocol):
    """What `_Linear` uses of autograd's context."""

    computation: Computation
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _Linear(torch.autograd.Function):
    """`F.linear` that computes `x` again in the backward pass."""

    @staticmethod
    def forward(
        ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe
    ) -> Tensor:
        ctx.computation = recipe.computation
        ctx.save_for_backward(weight, *(recipe.inputs if ctx.needs_input_grad[1] else ()))
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *inputs = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        grad_x = grad_weight = None
        if needs_x:
            # Under autocast, grad has a half-precision dtype and the weight is float32.
            grad_x = grad @ weight.to(grad.dtype)
        if needs_weight:
            x = ctx.computation.run(inputs)
            grad_weight = rows.t() @ x.flatten(0, -2).to(grad.dtype)
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
    recipe = recipe_of(x) if is_eager() and are_plain_tensors(x, weight, bias) else None
    trained = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    )
    if recipe is None or not trained or x.dim() < 2:
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias, recipe)


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
    if x.numel() <= x.shape[-1] ** 2 or not are_plain_tensors(gamma):
        return gamma * linear(x, weight, bias)
    return linear(x, gamma[:, None] * weight, None if bias is None else gamma * bias)
