"""Linear layers whose float32 matrix products on the CPU are oneDNN's.

PyTorch hands float32 products to its BLAS, and MKL leaves the AVX-512 units of other makers'
processors idle: on an EPYC (Zen 5) core it reaches 90 GFLOP/s where oneDNN reaches 200.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

__all__ = ["Linear", "linear", "linear_backward", "product", "uses_onednn"]

_AVAILABLE = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    # Inductor's operator: no public one takes plain tensors.
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def uses_onednn(*tensors: Tensor | None) -> bool:
    """Whether products of these tensors go to oneDNN.

    Eager float32 on the CPU does; graphs (compiled, exported, traced) keep PyTorch's own operators,
    and so does everything under autocast.
    """
    return (
        _AVAILABLE
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and all(
            t is None or (t.device.type == "cpu" and t.dtype == torch.float32 and t.numel() > 0)
            for t in tensors
        )
    )


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b.T + bias`` by oneDNN, for operands that ``uses_onednn`` has accepted.

    Args:
        a: (..., K).
        b: (N, K).
        bias: (N,).

    Returns:
        (..., N).
    """
    return torch.ops.mkldnn._linear_pointwise(_dense(a), _dense(b), bias, "none", [], "")


def _dense(matrix: Tensor) -> Tensor:
    """Rows or columns without gaps: for other strides oneDNN falls back to its reference loops."""
    if matrix.dim() == 2 and matrix.t().is_contiguous():
        return matrix
    return matrix.contiguous()


def linear_backward(
    needs_grad: tuple[bool, bool, bool], grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``F.linear(x, weight, bias)``, and None for those that nobody needs.

    Args:
        needs_grad: whether x, weight and bias need theirs.
        grad: (..., N), of the output.
        x: (..., K).
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
    rows, x_rows = grad.flatten(0, -2), x.flatten(0, -2)
    if needs_x:
        # Under autocast grad is of a half type, the weight float32.
        grad_x = product(grad, weight.t()) if onednn else grad @ weight.to(grad.dtype)
    if needs_weight and not onednn:
        grad_weight = rows.t() @ x_rows.to(grad.dtype)
    elif needs_weight and weight.shape[0] >= weight.shape[1]:
        # The larger factor second: up to 1.5 times as fast.
        grad_weight = product(x_rows.t(), rows.t()).t().contiguous()
    elif needs_weight:
        grad_weight = product(rows.t(), x_rows.t())
    if needs_bias:
        grad_bias = rows.sum(0)
    return grad_x, grad_weight, grad_bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return linear_backward(ctx.needs_input_grad, grad, *ctx.saved_tensors)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, by oneDNN where ``uses_onednn`` says so.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,).

    Returns:
        (..., N).
    """
    if not uses_onednn(x, weight, bias) or x.dim() < 2 or x.shape[-1] != weight.shape[-1]:
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    ):
        return _Linear.apply(x, weight, bias)
    return product(x, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` through ``linear``: same arguments, initialisation and state dict."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias)
