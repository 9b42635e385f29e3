"""Cheap layers that run again in the backward pass instead of keeping what they made.

The output of a norm or an activation is as large as its input, which is kept anyway; computing it
a second time costs a few per cent of the layer that uses it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vitadapter.layers.fast.switch import are_plain_tensors, is_eager, is_plain

__all__ = ["Recipe", "recipe_of", "recomputed", "run_and_recompute"]

# Of these `run_and_recompute` knows that they compute the same a second time, and that the batch
# norms among them have no other state than running statistics.
_REPEATABLE = (
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.Identity,
    nn.ReLU,
    nn.MaxPool2d,
    nn.Conv2d,
)


class Recipe(NamedTuple):
    """How a tensor was made.

    Attributes:
        function: makes it of the inputs.
        inputs: what it was made of; None for what the function can do without.
        versions: of the tensor and its inputs at that time, which changes in place count up.
        autocast: the autocast that it was made under.
    """

    function: Callable[..., Tensor]
    inputs: tuple[Tensor | None, ...]
    versions: tuple[int, ...]
    autocast: Callable[[], AbstractContextManager[object]]

    def run(self, inputs: Sequence[Tensor | None]) -> Tensor:
        """The tensor once more, of the inputs as the backward pass has them."""
        with self.autocast():
            return self.function(*inputs)


def _versions(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in tensors if tensor is not None)


def _autocast(device: str) -> Callable[[], AbstractContextManager[object]]:
    """Makes the present state of autocast for a type of device."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return partial(torch.autocast, device, dtype=dtype, enabled=enabled)


def _as_function(
    layer: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> tuple[Callable[..., Tensor], tuple[Tensor | None, ...]] | None:
    """A function and its inputs, parameters included; None for a module that is not known."""
    if not isinstance(layer, nn.Module):
        return layer, inputs
    if is_plain(layer, nn.GELU):
        return partial(F.gelu, approximate=layer.approximate), inputs
    if is_plain(layer, nn.LayerNorm):
        shape, eps = layer.normalized_shape, layer.eps

        def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            return F.layer_norm(x, shape, weight, bias, eps)

        return norm, (*inputs, layer.weight, layer.bias)
    return None


def recomputed(layer: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`layer(*inputs)`, which a `Linear` that reads it does not keep for its backward pass.

    The output carries the recipe by which the `Linear` makes it again. Whatever else reads it
    keeps it as usual, and so does a `Linear` behind a view, a hook or anything else that gives
    another tensor.

    Args:
        layer: `nn.LayerNorm`, `nn.GELU`, or a function that gives the same each time. Any other
            module, or one that is more than its class (see `is_plain`), is only called.
        inputs: its inputs, of one device.
    """
    output = layer(*inputs)
    if not is_eager() or not torch.is_grad_enabled():
        return output
    known = _as_function(layer, inputs)
    if known is None:
        return output
    function, tensors = known
    if not are_plain_tensors(output, *tensors) or any(t.is_inference() for t in inputs):
        return output
    autocast = _autocast(output.device.type)
    output._recipe = Recipe(function, tensors, _versions(output, *tensors), autocast)
    return output


def recipe_of(tensor: Tensor) -> Recipe | None:
    """How to make a tensor again; None where it is not `recomputed`, or has changed since."""
    recipe: Recipe | None = getattr(tensor, "_recipe", None)
    if recipe is None or _versions(tensor, *recipe.inputs) != recipe.versions:
        return None
    return recipe


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


def run_and_recompute(
    layers: Sequence[nn.Module], x: Tensor, repeatable: tuple[type[nn.Module], ...] = ()
) -> Tensor:
    """Runs layers in order and keeps only `x` for the backward pass.

    All but the last layer run again there; the last does not if it keeps nothing but its input, as
    convolutions and linear layers do. Batch norms count each batch once. Where one of the layers is
    not known to compute the same twice (see `is_plain`), they run as usual.

    Args:
        layers: norms, ReLU, pooling, convolutions.
        x: input of the first.
        repeatable: classes beside PyTorch's that compute the same twice.

    Returns:
        The output of the last.
    """

    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    known = all(is_plain(layer, *_REPEATABLE, *repeatable) for layer in layers)
    if not known or not is_eager() or not torch.is_grad_enabled():
        return run(x)
    return checkpoint(
        run,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _kept_statistics(layers)),
    )
