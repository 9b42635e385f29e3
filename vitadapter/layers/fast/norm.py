"""Layer norms of a residual stream, which on GPUs add a branch and convert in the same kernel.

Under autocast on a GPU, the stream is float32 and linear layers read half precision. PyTorch adds
the branch, computes the norm in float32, and converts it, in three kernels; in the backward pass,
it converts the norm's gradient, computes that of its input, adds it to that of the stream, and
converts the sum for the branch. Here, the first takes one kernel and the second two, which move
half the bytes.
"""

from functools import cache
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vitadapter.layers.fast.recompute import is_repeated, recomputed, with_recipe
from vitadapter.layers.fast.switch import (
    are_plain_tensors,
    is_eager,
    is_on_gpu,
    is_plain,
)

__all__ = ["add_and_norm"]

_HALF = (torch.float16, torch.bfloat16)
_SCHEMAS = (
    "add_and_norm(Tensor x, Tensor? branch, Tensor weight, Tensor bias, float eps, "
    "ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor)",
    "add_and_norm_backward(Tensor grad_normed, Tensor? grad_total, Tensor total, Tensor mean, "
    "Tensor rstd, Tensor weight, ScalarType branch_dtype) -> (Tensor, Tensor, Tensor, Tensor)",
)
# Of a row that the kernels hold in registers (kernels/add_and_norm/add_and_norm.h).
_MOST_CHANNELS = 4096
_LIBRARY = torch.library.Library("vitadapter", "FRAGMENT")
for _schema in _SCHEMAS:
    _LIBRARY.define(_schema)


def _forward(
    x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator in plain PyTorch.

    Args:
        x: (..., C) in float32.
        branch: the same shape, in `dtype` or float32; None for none.
        weight, bias: (C,) of the norm, in float32.
        eps: of the norm.
        dtype: of the norm's output.

    Returns:
        `x + branch` (empty without a branch), its norm, and the mean and 1 / standard deviation of
        each row.
    """
    total = x if branch is None else x + branch
    shape = weight.shape
    normed, mean, rstd = torch.native_layer_norm(total, shape, weight, bias, eps)
    sums = x.new_empty(0) if branch is None else total
    return sums, normed.to(dtype), mean.flatten(), rstd.flatten()


def _backward(
    grad_normed: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    branch_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients in plain PyTorch.

    Args:
        grad_normed: of the norm, in half precision.
        grad_total: of the sum from elsewhere; None for none.
        total: the sum, whose norm it was.
        mean, rstd: of each row.
        weight: of the norm.
        branch_dtype: of the branch; float32 for none.

    Returns:
        The gradients of `x`, of the branch, the weight and the bias. That of a branch in float32 is
        that of `x`, and is empty here.
    """
    rows = (*total.shape[:-1], 1)
    grad_x, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
        grad_normed.float(),
        total,
        weight.shape,
        mean.view(rows),
        rstd.view(rows),
        weight,
        weight,  # only its shape matters, which is that of the bias
        [True, True, True],
    )
    if grad_total is not None:
        grad_x = grad_x + grad_total
    has_branch = branch_dtype != total.dtype
    grad_branch = grad_x.to(branch_dtype) if has_branch else total.new_empty(0)
    return grad_x, grad_branch, grad_weight, grad_bias


# The kernels for GPUs are in kernels/add_and_norm.
_LIBRARY.impl("add_and_norm", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("add_and_norm_backward", _backward, "CompositeExplicitAutograd")


class _Context(Protocol):
    """What `_AddAndNorm` uses of autograd's context."""

    branch_dtype: torch.dtype | None
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...


class _AddAndNorm(torch.autograd.Function):
    """The operator and its gradients."""

    @staticmethod
    def forward(
        ctx: _Context,
        x: Tensor,
        branch: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        x, branch = x.contiguous(), None if branch is None else branch.contiguous()
        total, normed, mean, rstd = torch.ops.vitadapter.add_and_norm(
            x, branch, weight, bias, eps, dtype
        )
        total = x if branch is None else total
        ctx.branch_dtype = None if branch is None else branch.dtype
        ctx.save_for_backward(total, mean, rstd, weight)
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(
        ctx: _Context, grad_total: Tensor | None, grad_normed: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        total, mean, rstd, weight = ctx.saved_tensors
        dtype = ctx.branch_dtype
        if grad_normed is None:  # nobody has used the norm
            grad_branch = None if grad_total is None or dtype is None else grad_total.to(dtype)
            return grad_total, grad_branch, None, None, None, None
        grad_x, grad_branch, *affine = torch.ops.vitadapter.add_and_norm_backward(
            grad_normed.contiguous(),
            None if grad_total is None else grad_total.contiguous(),
            total,
            mean,
            rstd,
            weight,
            total.dtype if dtype is None else dtype,
        )
        if dtype == total.dtype:
            grad_branch = grad_x
        return grad_x, None if dtype is None else grad_branch, *affine, None, None


def add_and_norm(norm: nn.Module, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Adds a branch to a residual stream, and normalises the sum for linear layers.

    On a GPU under autocast, it can be differentiated once.

    Args:
        norm: usually `nn.LayerNorm`; any other module, and one that is not plain (see `is_plain`),
            is only called.
        x: the stream (..., C).
        branch: (..., C); None if there is nothing to add yet.

    Returns:
        `x + branch`, or `x`, to go on with: its gradients are then added up in the same kernel. And
        its norm, `recomputed` or in the half-precision dtype of autocast, in which linear layers
        read it.
    """
    if not _is_fused(norm, x, branch):
        total = x if branch is None else x + branch
        return total, recomputed(norm, total)
    dtype = torch.get_autocast_dtype(x.device.type)
    weight, bias, eps = norm.weight, norm.bias, norm.eps
    total, normed = _AddAndNorm.apply(x, branch, weight, bias, eps, dtype)
    if is_repeated(normed):

        def again(total: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return torch.ops.vitadapter.add_and_norm(total, None, weight, bias, eps, dtype)[1]

        normed = with_recipe(normed, again, (total, weight, bias))
    return total, normed


@cache
def _has_kernels(device: torch.device) -> bool:
    """Whether our operators were compiled for a device, if it is a GPU."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return device.type != "cuda" or has("vitadapter::add_and_norm", "CUDA")


def _is_fused(norm: nn.Module, x: Tensor, branch: Tensor | None) -> TypeGuard[nn.LayerNorm]:
    """Whether the operator computes it: only then are there conversions to save."""
    device = x.device.type
    return (
        is_eager()
        and is_on_gpu(x)
        and _has_kernels(x.device)
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
        and torch.get_autocast_dtype(device) in _HALF
        and is_plain(norm, nn.LayerNorm)
        and norm.normalized_shape == x.shape[-1:]
        and x.shape[-1] <= _MOST_CHANNELS
        and norm.bias is not None
        and are_plain_tensors(x, branch)
        and not x.is_inference()
        and x.dtype == norm.weight.dtype == torch.float32
        and (branch is None or branch.shape == x.shape)
    )
