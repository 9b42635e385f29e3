"""Softmax attention over many tokens on the CPU, a block of queries at a time."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from vitadapter.layers.fast.onednn import product, uses_onednn

__all__ = ["attend"]

# Logits that are computed together: they fit the caches, and keep several threads busy.
_LOGITS = 2**19
_LEAST_ROWS = 256
# Below, PyTorch's kernel is as quick.
_LEAST_TOKENS = 512


def _blocks(q: Tensor) -> Iterator[tuple[int, int, slice]]:
    """(image, head, queries) that are computed together."""
    batch, heads, tokens, _ = q.shape
    rows = max(_LEAST_ROWS, _LOGITS // tokens)
    for image in range(batch):
        for head in range(heads):
            for start in range(0, tokens, rows):
                yield image, head, slice(start, start + rows)


class _Attention(torch.autograd.Function):
    """Keeps queries, keys and values alone; the backward pass computes the weights again."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        scaled_k = (k * q.shape[-1] ** -0.5).contiguous()
        v_t = v.transpose(2, 3).contiguous()
        batch, heads, tokens, dim = q.shape
        out = q.new_empty(batch, tokens, heads, dim).transpose(1, 2)
        for i, h, rows in _blocks(q):
            weights = product(q[i, h, rows], scaled_k[i, h])
            torch.softmax(weights, -1, out=weights)
            out[i, h, rows] = product(weights, v_t[i, h])
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "attention over many tokens on the CPU has no second derivative"
            )
        q, k, v = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        scaled_k, v = (k * scale).contiguous(), v.contiguous()
        batch, heads, tokens, dim = q.shape
        # One buffer in the layout of the joint projection, whose gradient it becomes.
        grads = q.new_zeros(batch, tokens, 3, heads, dim).permute(2, 0, 3, 1, 4)
        grad_q, grad_k, grad_v = grads.unbind(0)
        for i, h, rows in _blocks(q):
            q_rows, grad_rows = q[i, h, rows].contiguous(), grad[i, h, rows].contiguous()
            weights = product(q_rows, scaled_k[i, h])
            torch.softmax(weights, -1, out=weights)
            grad_v[i, h] += product(weights.t(), grad_rows.t())
            grad_logits = torch.ops.aten._softmax_backward_data(
                product(grad_rows, v[i, h]), weights, -1, weights.dtype
            )
            grad_q[i, h, rows] = product(grad_logits, scaled_k[i, h].t())
            grad_k[i, h] += product(grad_logits.t(), q_rows.t())
        grad_k *= scale
        return grad_q, grad_k, grad_v


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.scaled_dot_product_attention``; many float32 tokens on the CPU go by oneDNN.

    Args:
        q: queries (B, heads, N, D).
        k: keys of the same shape.
        v: values of the same shape.
        bias: added to the logits, (B, heads, N, N).

    Returns:
        (B, heads, N, D).
    """
    if bias is not None or q.shape[2] < _LEAST_TOKENS or not uses_onednn(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return _Attention.apply(q, k, v)
