"""Other projects' operators of deformable attention, as far as they can be used here."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

__all__ = ["Peer", "load_peers"]

Peer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""From values (B, N, heads, channels), sizes (levels, 2) of the levels and their first tokens,
locations (B, Q, heads, levels, points, 2) in [0, 1] as (x, y), and weights, to (B, Q, channels)."""

_STEP = 64  # images that the older operators compute at once


def _torch_ms_deform_attn() -> Peer:
    from torch_ms_deform_attn import ms_deform_attn

    return ms_deform_attn


def _deformops() -> Peer:
    from deformops.registry import msda

    return lambda *tensors: msda(*tensors[:-1], tensors[-1].flatten(3)).flatten(2)


def _mmcv() -> Peer:
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    def call(
        value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
    ) -> Tensor:
        taps = (locations.to(value.dtype), weights.to(value.dtype))  # as mmcv's modules do
        return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, *taps, _STEP)

    return call


def _transformers() -> Peer:
    from kernels import get_kernel

    layer = get_kernel("kernels-community/deformable-detr").layers.MultiScaleDeformableAttention()
    return lambda value, shapes, *tensors: layer(value, shapes, shapes.tolist(), *tensors, _STEP)


_LOADERS: dict[str, Callable[[], Peer]] = {
    "torch-ms-deform-attn": _torch_ms_deform_attn,
    "deformops": _deformops,
    "mmcv": _mmcv,
    "transformers' kernel": _transformers,
}
_ONLY_ON_GPUS = ("mmcv", "transformers' kernel")


@cache
def load_peers(device: str) -> tuple[dict[str, Peer], dict[str, str]]:
    """Imports them, each once per process.

    Args:
        device: where they shall run, "cpu" or "cuda".

    Returns:
        Those that can be used, and of the others why not; by name.
    """
    found, missing = {}, {}
    for name, load in _LOADERS.items():
        if name in _ONLY_ON_GPUS and torch.device(device).type == "cpu":
            missing[name] = "runs on GPUs only"
            continue
        try:
            found[name] = load()
        except Exception as error:  # a foreign package may fail in any way
            reason = " ".join(str(error).split())
            missing[name] = f"cannot be imported: {type(error).__name__}: {reason[:300]}"
    return found, missing
