"""Matrix products of float32 tokens on the CPU, by the library that is faster on the processor.

PyTorch's BLAS in its packages for x86 is Intel's MKL. On AMD's processors, MKL does not use
AVX-512, and oneDNN, which PyTorch has for convolutions, does: on an EPYC (Zen 5), MKL reaches 110
GFLOP/s per core and oneDNN 250. On Intel's Xeon (Sapphire Rapids), oneDNN is no faster in the
forward pass and slower in training. So oneDNN is chosen on AMD's processors with AVX-512, and
nothing changes on others.

With units of 256 bits, oneDNN was faster on the EPYC, too, but too little to choose it without
having measured such a processor: the forward pass of ViT-Adapter-S by 5 %, a step by 5 to 7 %.

oneDNN is called by the operator that Inductor uses. What is public takes longer: a convolution of
1 x 1 (with a dilation, without which PyTorch does not give it to oneDNN) reaches 150 GFLOP/s, and
its gradients 60 to 160; `F.linear` of `Tensor.to_mkldnn()` copies inputs and outputs, which takes
up to a fifth of the product's time.

CPU milliseconds of MKL / oneDNN on one thread from `scripts/benchmark_products.py`, where training
is the forward pass and both gradients. On the EPYC:

=========================  ================  ==================  =============  ==================
tokens x channels x out    forward, AVX-512  training, AVX-512   forward, AVX2  training, AVX2
=========================  ================  ==================  =============  ==================
196 x 384 x 384            0.5 / 0.2         1.6 / 0.7           0.5 / 0.5      1.6 / 1.4
196 x 384 x 1536           2.0 / 0.9         6.3 / 2.8           2.2 / 1.9      6.7 / 5.9
196 x 1536 x 384           2.0 / 0.9         6.1 / 2.7           2.2 / 1.9      6.6 / 5.8
1029 x 384 x 384           2.7 / 1.2         8.2 / 3.7           2.8 / 2.5      8.5 / 7.6
3800 x 192 x 768           10.6 / 4.7        32.3 / 16.1         10.7 / 9.2     32.7 / 30.5
3800 x 768 x 192           10.7 / 4.9        32.3 / 15.8         11.0 / 9.7     33.0 / 31.0
19950 x 192 x 192          14.9 / 6.8        44.0 / 23.8         14.9 / 13.1    44.6 / 43.3
3800 x 384 x 1536          40.1 / 18.0       121.9 / 77.3        40.6 / 35.8    123.8 / 110.8
3800 x 1536 x 384          40.9 / 18.2       121.6 / 57.7        41.1 / 36.4    122.5 / 118.6
19950 x 384 x 384          55.9 / 23.6       162.3 / 79.3        55.0 / 48.0    163.6 / 154.3
=========================  ================  ==================  =============  ==================

On the Xeon (where the gradient of the weight was computed in the faster order of its factors):

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

Attention is PyTorch's own: built from such products, it takes 1.4 to 2 times as long.
"""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitadapter.layers.fast.switch import is_eager, is_on_gpu

__all__ = ["is_by_onednn", "product"]

_SCHEMA = (
    "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, "
    "str? algorithm) -> Tensor Y"
)
_CPU_INFO = Path("/proc/cpuinfo")
# With fewer multiplications, calling the operator takes longer (10 microseconds) than it saves.
_FEWEST_MULTIPLICATIONS = 2**21


def _is_amd() -> bool:
    """Whether Linux says that this is a processor of AMD."""
    return _CPU_INFO.is_file() and "AuthenticAMD" in _CPU_INFO.read_text()


def _is_operator_known() -> bool:
    """Whether this PyTorch has oneDNN's operator in the form that `product` calls."""
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return operator is not None and str(operator.default._schema) == _SCHEMA


@cache
def _is_onednn_faster() -> bool:
    """Whether oneDNN is faster than PyTorch's BLAS on this processor, and can be called."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and _is_operator_known()
        and _is_amd()
    )


def _is_watched() -> bool:
    """Whether something looks at PyTorch's operators, such as a counter of FLOPs."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._len_torch_function_stack() > 0


def is_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `product` calls oneDNN for these tensors, unless something looks at operators."""
    return (
        is_eager()  # first: graphs that are compiled do not see the rest
        and _is_onednn_faster()
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and all(
            type(t) in (Tensor, nn.Parameter)
            and t.dtype == torch.float32
            and t.device.type == "cpu"
            and t.layout == torch.strided
            for t in (x, weight, bias)
            if t is not None
        )
        and not is_on_gpu(x)
        and x.dim() >= 2
        and weight.dim() == 2
        and x.shape[-1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
        and x.shape[:-1].numel() * weight.numel() >= _FEWEST_MULTIPLICATIONS
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, which with oneDNN is not differentiable (see `linear`).

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,).

    Returns:
        (..., N).
    """
    if is_by_onednn(x, weight, bias) and not _is_watched():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)
