"""Cheap layers that run again in the backward pass instead of keeping what they made.

The output of a norm or an activation is as large as its input, which is kept anyway; computing it
a second time costs a few per cent of the layer that uses it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vitadapter.layers.linear import linear, linear_backward

__all__ = ["gelu_linear", "norm_linear", "run_and_recompute"]


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x, *others = linear_backward(ctx.needs_input_grad, grad, F.gelu(x), weight)
        if grad_x is not None:
            grad_x = torch.ops.aten.gelu_backward(grad_x.to(x.dtype), x)
        return grad_x, *others


def gelu_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """``layer(gelu(x))`` with the exact GELU, which keeps ``x`` alone for the backward pass.

    Args:
        x: (..., in_features), the input of the activation.
        layer: the linear layer behind it, with a bias.

    Returns:
        (..., out_features).
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return layer(F.gelu(x))
    return _GeluLinear.apply(x, layer.weight, layer.bias)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        ctx.eps = eps
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        ctx.save_for_backward(x, norm_weight, norm_bias, weight, mean, rstd)
        return linear(normed, weight, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, weight, mean, rstd = ctx.saved_tensors
        needs_norm, needs_linear = ctx.needs_input_grad[:3], ctx.needs_input_grad[3:5]
        normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, ctx.eps)
        grad_normed, *grads_linear = linear_backward(
            (any(needs_norm), *needs_linear), grad, normed, weight
        )
        grads_norm = (None, None, None)
        if grad_normed is not None:
            grads_norm = torch.ops.aten.native_layer_norm_backward(
                grad_normed, x, x.shape[-1:], mean, rstd, norm_weight, norm_bias, needs_norm
            )
        return *grads_norm, *grads_linear, None


def norm_linear(x: Tensor, norm: nn.Module, layer: nn.Linear) -> Tensor:
    """``layer(norm(x))``, which keeps ``x`` alone for the backward pass if it is a layer norm.

    Args:
        x: (..., C).
        norm: the norm of C channels.
        layer: the linear layer behind it.

    Returns:
        (..., out_features).
    """
    known = type(norm) is nn.LayerNorm and len(norm.normalized_shape) == 1
    if (
        not known
        or norm.weight is None
        or norm.bias is None
        or torch.compiler.is_compiling()
        or not torch.is_grad_enabled()
        or torch.is_autocast_enabled(x.device.type)
    ):
        return layer(norm(x))
    return _NormLinear.apply(x, norm.weight, norm.bias, layer.weight, layer.bias, norm.eps)


@contextmanager
def _kept_statistics(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Batch norms use the batch's statistics without adding them to the running ones again."""
    norms = [n for n in layers if isinstance(n, _BatchNorm) and n.track_running_stats]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def run_and_recompute(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Runs layers in order and keeps only ``x`` for the backward pass.

    All but the last layer run again there; the last does not if it keeps nothing but its input, as
    convolutions and linear layers do. Batch norms count each batch once.

    Args:
        layers: for example norm, activation, convolution.
        x: input of the first.

    Returns:
        The output of the last.
    """

    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return run(x)
    return checkpoint(
        run,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _kept_statistics(layers)),
    )
