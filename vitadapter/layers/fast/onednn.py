"""Float32 matrix products on the CPU by oneDNN.

PyTorch hands float32 products to its BLAS, and MKL leaves the AVX-512 units of other makers'
processors idle: on an EPYC (Zen 5) core it reaches 90 GFLOP/s where oneDNN reaches 200.

The operator is Inductor's (no public one takes plain tensors). Where a later PyTorch does not have
it, ``uses_onednn`` is False and everything goes the way of ``F.linear``.
"""

import torch
from torch import Tensor

from vitadapter.layers.fast.switch import are_plain_tensors, is_eager

__all__ = ["product", "uses_onednn"]

_AVAILABLE = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def uses_onednn(*tensors: Tensor | None) -> bool:
    """Whether products of these tensors go to oneDNN: those of eager float32 on the CPU do.

    Not under autocast, and not with subclasses of tensors (quantised, fake, distributed ones).
    """
    return (
        _AVAILABLE
        and is_eager()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and are_plain_tensors(*tensors)
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
