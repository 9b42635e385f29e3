"""Layer norm of a sum on GPUs, in Triton, which comes with PyTorch for CUDA.

PyTorch's own kernels would write the norm in float32, convert it, and add the gradients of the
residual branch in one more pass.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["backward", "forward"]

_PROGRAMS = 512  # several for each multiprocessor; each adds up the gradients of its own rows


@triton.jit
def _forward_kernel(
    x,
    branch,
    weight,
    bias,
    total,
    normed,
    mean,
    rstd,
    channels,
    eps,
    has_branch: tl.constexpr,
    block: tl.constexpr,
):
    """One row per program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    mask = columns < channels
    places = row * channels + columns
    value = tl.load(x + places, mask=mask, other=0.0)
    if has_branch:
        value += tl.load(branch + places, mask=mask, other=0.0).to(tl.float32)
        tl.store(total + places, value, mask=mask)
    row_mean = tl.sum(value, 0) / channels
    centred = tl.where(mask, value - row_mean, 0.0)
    row_rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / channels + eps)
    scale = tl.load(weight + columns, mask=mask, other=0.0)
    shift = tl.load(bias + columns, mask=mask, other=0.0)
    result = centred * row_rstd * scale + shift
    tl.store(normed + places, result.to(normed.dtype.element_ty), mask=mask)
    tl.store(mean + row, row_mean)
    tl.store(rstd + row, row_rstd)


@triton.jit
def _backward_kernel(
    grad_normed,
    grad_total,
    total,
    mean,
    rstd,
    weight,
    grad_x,
    grad_branch,
    grad_affine,
    rows,
    channels,
    has_total: tl.constexpr,
    has_branch: tl.constexpr,
    block: tl.constexpr,
):
    """Every n-th row per program, for n programs."""
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    columns = tl.arange(0, block)
    mask = columns < channels
    scale = tl.load(weight + columns, mask=mask, other=0.0)
    grad_scale = tl.zeros([block], dtype=tl.float32)
    grad_shift = tl.zeros([block], dtype=tl.float32)
    for row in range(program, rows, programs):
        places = tl.cast(row, tl.int64) * channels + columns
        grad = tl.load(grad_normed + places, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(total + places, mask=mask, other=0.0)
        row_rstd = tl.load(rstd + row)
        standard = tl.where(mask, (value - tl.load(mean + row)) * row_rstd, 0.0)
        grad_scale += grad * standard
        grad_shift += grad
        grad *= scale
        along = tl.sum(grad * standard, 0) / channels
        result = (grad - tl.sum(grad, 0) / channels - standard * along) * row_rstd
        if has_total:
            result += tl.load(grad_total + places, mask=mask, other=0.0)
        tl.store(grad_x + places, result, mask=mask)
        if has_branch:
            tl.store(grad_branch + places, result.to(grad_branch.dtype.element_ty), mask=mask)
    places = program.to(tl.int64) * channels + columns
    tl.store(grad_affine + places, grad_scale, mask=mask)
    tl.store(grad_affine + programs.to(tl.int64) * channels + places, grad_shift, mask=mask)


def _launch_options(channels: int) -> dict[str, int]:
    """The power of two that covers the channels, and warps that hold 8 of them per thread."""
    block = triton.next_power_of_2(channels)
    return {"block": block, "num_warps": min(max(block // 256, 1), 16)}


def forward(
    x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `vitadapter.layers.fast.norm._forward`; all tensors are contiguous."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    total = x.new_empty(0) if branch is None else torch.empty_like(x)
    normed = torch.empty_like(x, dtype=dtype)
    mean, rstd = x.new_empty(rows), x.new_empty(rows)
    pointers = (x, x if branch is None else branch, weight, bias, total, normed, mean, rstd)
    has_branch = branch is not None
    if rows > 0:
        with torch.cuda.device_of(x):
            _forward_kernel[(rows,)](
                *pointers, channels, eps, has_branch=has_branch, **_launch_options(channels)
            )
    return total, normed, mean, rstd


def backward(
    grad_normed: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    branch_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `vitadapter.layers.fast.norm._backward`; all tensors are contiguous."""
    channels = total.shape[-1]
    rows = total.numel() // channels
    has_branch = branch_dtype != total.dtype
    grad_x = torch.empty_like(total)
    grad_branch = torch.empty_like(total, dtype=branch_dtype) if has_branch else total.new_empty(0)
    grad_affine = total.new_empty(2, min(rows, _PROGRAMS), channels)
    given = (grad_normed, total if grad_total is None else grad_total, total, mean, rstd, weight)
    made = (grad_x, grad_branch, grad_affine)
    if rows > 0:
        with torch.cuda.device_of(total):
            _backward_kernel[(grad_affine.shape[1],)](
                *given,
                *made,
                rows,
                channels,
                has_total=grad_total is not None,
                has_branch=has_branch,
                **_launch_options(channels),
            )
    grad_weight, grad_bias = grad_affine.sum(1)
    return grad_x, grad_branch, grad_weight, grad_bias
