#!/usr/bin/env python
"""Times the matrix products of ViTs' tokens with PyTorch's BLAS and with oneDNN.

Run this to check on a new processor that vitadapter/layers/fast/products.py is right to choose the
one or the other. Prints CPU milliseconds in float32, medians of interleaved rounds, for the forward
pass and for forward and backward together (three products). To run both without AVX-512:

ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 scripts/benchmark_products.py
"""

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from benchmarks.interleaved import interleave

Product = Callable[[Tensor, Tensor], Tensor]
# tokens, channels in and out: at 800 x 1216 a net has 3,800, the adapter's three levels 19,950; at
# 224 x 224, they have 196 and 1,029
SHAPES = (
    (196, 384, 384),
    (196, 384, 1536),
    (196, 1536, 384),
    (1029, 384, 384),
    (3800, 192, 768),
    (3800, 768, 192),
    (19950, 192, 192),
    (3800, 384, 1536),
    (3800, 1536, 384),
    (19950, 384, 384),
    (3800, 768, 3072),
    (19950, 768, 384),
)


def blas(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T`, MKL's in PyTorch's packages for x86."""
    return a @ b.t()


def onednn(a: Tensor, b: Tensor) -> Tensor:
    """The same product with the operator that Inductor uses, as there is no public one."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def train(product: Product, x: Tensor, weight: Tensor, grad: Tensor) -> None:
    """Forward, and the gradients of both operands as in vitadapter/layers/fast/linear.py."""
    product(x, weight)
    product(grad, weight.t())
    product(grad.t(), x.t())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take medians over")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads\ntokens x in x out: BLAS / oneDNN ms")
    for tokens, channels, outputs in SHAPES:
        x, weight = torch.randn(tokens, channels), torch.randn(outputs, channels)
        grad = torch.randn(tokens, outputs)
        calls = {}
        for product in (blas, onednn):
            calls["forward", product] = partial(product, x, weight)
            calls["training", product] = partial(train, product, x, weight, grad)
        turns = interleave(calls, args.rounds, "cpu", seconds=0.15)
        times = {call: 1e3 * median(t.cpu for t in taken) for call, taken in turns.items()}
        line = (
            f"{kind} {times[kind, blas]:6.1f} /{times[kind, onednn]:6.1f}"
            for kind in ("forward", "training")
        )
        print(f"{tokens} x {channels} x {outputs}:  {'   '.join(line)}", flush=True)


if __name__ == "__main__":
    main()
