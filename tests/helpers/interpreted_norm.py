"""Runs the kernels of the fused norm on the CPU, in Triton's interpreter, beside the operators."""

import itertools
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # before Triton sees the kernels

import torch

from vitadapter.layers.fast import norm, norm_kernels

norm_kernels._PROGRAMS = 3  # less than rows, so that some programs have two
cases = itertools.product((1, 5), (6, 64), (None, torch.bfloat16, torch.float32))
count = 0
for rows, channels, branch_dtype in cases:
    torch.manual_seed(0)
    x, grad_total = torch.randn(2, rows, channels)
    branch = None if branch_dtype is None else torch.randn(rows, channels).to(branch_dtype)
    weight, bias = torch.randn(2, channels)
    arguments = (x, branch, weight, bias, 1e-6, torch.bfloat16)
    found, expected = norm_kernels.forward(*arguments), norm._forward(*arguments)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-5)
    sums, normed, mean, rstd = expected
    total = x if branch is None else sums
    for grad in (None, grad_total):
        arguments = (normed, grad, total, mean, rstd, weight, branch_dtype or total.dtype)
        found, expected = norm_kernels.backward(*arguments), norm._backward(*arguments)
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)
    count += 1
sys.stdout.write(f"{count} cases\n")
