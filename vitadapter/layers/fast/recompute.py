"""Cheap layers that run again in the backward pass, so that their outputs need not be kept.

The output of a norm or an activation is as large as its input, which is kept anyway. Computing it
a second time on a CPU takes a few percent of the time of the layer that uses it. A GPU, which such
layers keep busier, does it on demand only (see `run_with_checkpoint`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vitadapter.layers.fast.switch import are_plain_tensors, is_eager, is_on_gpu, is_plain

__all__ = [
    "ActCheckpoint",
    "Computation",
    "Recipe",
    "check_act_checkpoint",
    "is_repeated",
    "recipe_of",
    "recomputed",
    "run_and_recompute",
    "run_with_checkpoint",
    "with_recipe",
]

ActCheckpoint = bool | Literal["layers"]
"""What runs again in the backward pass: parts, only cheap layers, or (on a GPU) nothing."""

# These are known to compute the same when they run a second time. The only state of the batch norms
# among them is their running statistics.
_REPEATABLE: tuple[type[nn.Module], ...] = (
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.Identity,
    nn.ReLU,
    nn.MaxPool2d,
    nn.Conv2d,
)
_RECIPE = "_recipe"  # the attribute of a tensor

_Output = TypeVar("_Output")

_repeats_on_gpu = False


class Computation(NamedTuple):
    """How to compute a tensor, without the tensors that it is computed from.

    Attributes:
        function: computes it from the inputs.
        autocast: makes a context with the state of autocast at the first time.
    """

    function: Callable[..., Tensor]
    autocast: Callable[[], AbstractContextManager[object]]

    def run(self, inputs: Sequence[Tensor | None]) -> Tensor:
        """Computes the tensor again, from the inputs that the backward pass has saved."""
        with self.autocast():
            return self.function(*inputs)


class Recipe(NamedTuple):
    """How a tensor was computed.

    Attributes:
        computation: without the inputs. Whoever saves the inputs through autograd keeps only this,
            so that activation checkpointing can free them.
        inputs: the tensors it was computed from; None for optional ones that are missing.
        versions: the versions that the tensor and its inputs had then; in-place changes increase
            them.
    """

    computation: Computation
    inputs: tuple[Tensor | None, ...]
    versions: tuple[int, ...]


def _versions(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in tensors if tensor is not None)


def _autocast(device: str) -> Callable[[], AbstractContextManager[object]]:
    """Returns what makes a context with the present state of autocast for a type of device."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return partial(torch.autocast, device, dtype=dtype, enabled=enabled)


def _as_function(
    layer: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> tuple[Callable[..., Tensor], tuple[Tensor | None, ...]] | None:
    """Returns a function and its inputs, parameters included; None for an unknown module."""
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
    """`layer(*inputs)`, which `linear` and `run_linear` need not keep for their backward passes.

    They recompute it by the recipe that is attached to it. Anything else that reads it keeps it as
    usual. So do they if they are given another tensor instead, such as a view of it or what a hook
    made of it.

    Args:
        layer: `nn.LayerNorm`, `nn.GELU`, or a function that always gives the same result. Any other
            module, and one that is not plain (see `is_plain`), is only called.
        inputs: its inputs, on one device.
    """
    output = layer(*inputs)
    if not is_repeated(output):
        return output
    known = _as_function(layer, inputs)
    if known is None:
        return output
    function, tensors = known
    if not are_plain_tensors(output, *tensors) or any(t.is_inference() for t in inputs):
        return output
    return with_recipe(output, function, tensors)


def is_repeated(output: Tensor) -> bool:
    """Whether a cheap layer that gives this output is to run again in the backward pass."""
    return is_eager() and torch.is_grad_enabled() and (_repeats_on_gpu or not is_on_gpu(output))


def with_recipe(
    output: Tensor, function: Callable[..., Tensor], inputs: tuple[Tensor | None, ...]
) -> Tensor:
    """Notes that `function(*inputs)` gives `output` again."""
    computation = Computation(function, _autocast(output.device.type))
    setattr(output, _RECIPE, Recipe(computation, inputs, _versions(output, *inputs)))
    return output


def recipe_of(tensor: Tensor) -> Recipe | None:
    """Returns the recipe of a tensor; None if it is not `recomputed`, or has changed since."""
    recipe: Recipe | None = getattr(tensor, _RECIPE, None)
    if recipe is None or _versions(tensor, *recipe.inputs) != recipe.versions:
        return None
    return recipe


@contextmanager
def _kept_statistics(layers: nn.Sequential) -> Iterator[None]:
    """Inside this context, batch norms do not update their running statistics (a second time)."""
    norms = [n for n in layers if isinstance(n, _BatchNorm) and n.track_running_stats]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.clone()
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def run_and_recompute(
    layers: nn.Sequential, x: Tensor, repeatable: tuple[type[nn.Module], ...] = ()
) -> Tensor:
    """Runs layers in order and keeps only `x` for the backward pass.

    The layers run again there, except for the last one if it keeps nothing but its input, as
    convolutions and linear layers do. Batch norms count each batch once. If one of the layers is
    not known to compute the same twice (see `is_plain`), all run as usual.

    Args:
        layers: norms, ReLU, pooling, convolutions.
        x: input of the first layer.
        repeatable: further classes, besides PyTorch's, that compute the same twice.

    Returns:
        The output of the last layer.
    """

    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    known = all(is_plain(layer, *_REPEATABLE, *repeatable) for layer in layers)
    if not known or not is_repeated(x):
        return run(x)
    return checkpoint(
        run,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _kept_statistics(layers)),
    )


def check_act_checkpoint(level: object) -> None:
    """Raises ValueError unless this is a level of `run_with_checkpoint`."""
    if not (isinstance(level, bool) or level == "layers"):
        raise ValueError(f'use_act_checkpoint must be True, False or "layers", got {level!r}')


@contextmanager
def _repeated_on_gpu(on: bool) -> Iterator[None]:
    """Inside this context, cheap layers run again on GPUs, too, or do not."""
    global _repeats_on_gpu
    before, _repeats_on_gpu = _repeats_on_gpu, on
    try:
        yield
    finally:
        _repeats_on_gpu = before


def run_with_checkpoint(
    level: ActCheckpoint, part: Callable[..., _Output], *inputs: object
) -> _Output:
    """`part(*inputs)`, of which more or less is kept for the backward pass.

    Args:
        level: True to keep only the inputs, and to run the part again in the backward pass;
            "layers" to run only cheap layers again, which a CPU does anyway; False for what is
            fastest.
        part: computes one tensor or several.
        inputs: what it is called with.
    """
    if level is True and torch.is_grad_enabled():
        return checkpoint(part, *inputs, use_reentrant=False)
    if not is_eager():
        return part(*inputs)
    with _repeated_on_gpu(level == "layers"):
        return part(*inputs)
