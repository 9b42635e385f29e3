"""What `train.compile` does: `torch.compile` of the parts of a model that many layers share.

These are the blocks of the net, the injectors and extractors, and the layers of Mask2Former's
encoder. They work on tokens, so that one program serves images of all sizes, and one program serves
all parts that are alike: compiling takes seconds. Maps are left to eager convolutions, because
Inductor compiles their gradients for each size again (as of torch 2.14).
"""

import logging
from collections import Counter
from collections.abc import Iterator

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vitadapter.modeling.backbone.interaction import DepthwiseConv, Extractor, Injector
from vitadapter.modeling.backbone.nets.plain_net import PlainNet
from vitadapter.modeling.mask2former.pixel_decoder import MSDeformAttnEncoderLayer

__all__ = ["EagerModel", "compile_parts"]

logger = logging.getLogger(__name__)

_MOST_PROGRAMS = 64


def compile_parts(model: nn.Module) -> None:
    """Compiles parts of a model in place; the names of its weights stay as they are.

    Args:
        model: on its device, and not yet distributed.

    Raises:
        ValueError: it has no part that can be compiled, or one with `use_act_checkpoint="layers"`.
    """
    _check_levels(model)
    parts = [part for part in _parts(model) if not _has_convolutions(part)]
    if not parts:
        raise ValueError(
            "train.compile=True, but the model has no part that it can compile, which are blocks "
            "of nets, injectors, extractors and encoders of Mask2Former: set train.compile=False"
        )
    _allow_many_programs()
    for part in parts:
        _replace_drop_paths(part)
        part.compile(dynamic=True)
    counts = Counter(type(part).__name__ for part in parts)
    logger.info(
        "train.compile: parts that the first iterations compile: %s",
        ", ".join(f"{count} x {name}" for name, count in counts.items()),
    )


def _check_levels(model: nn.Module) -> None:
    """Refuses what programs do not follow."""
    for name, module in model.named_modules():
        if getattr(module, "use_act_checkpoint", None) == "layers":
            raise ValueError(
                f'use_act_checkpoint="layers" ({name or "of the model"}) does nothing in programs '
                "of train.compile=True: take True or False"
            )


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if isinstance(module, PlainNet):
            yield from module.blocks_for_any_size()
        elif isinstance(module, Injector | Extractor | MSDeformAttnEncoderLayer):
            yield module


def _has_convolutions(part: nn.Module) -> bool:
    """Whether a part convolves maps, other than by `DepthwiseConv`, which knows how."""
    known = {m.dwconv for m in part.modules() if isinstance(m, DepthwiseConv) and m.is_as_built}
    return any(isinstance(m, nn.modules.conv._ConvNd) and m not in known for m in part.modules())


def _allow_many_programs() -> None:
    """Raises PyTorch's limit of programs, beyond which it would run parts of new kinds eagerly.

    All blocks share the code of one class. Each kind of block (with and without windows, stochastic
    depth, or trained weights) has its program.
    """
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, limit, max(getattr(config, limit), _MOST_PROGRAMS))


class _DropPath(nn.Module):
    """timm's `DropPath` without `bernoulli_`, each of whose rates would need its own program."""

    def __init__(self, rate: float, scale_by_keep: bool) -> None:
        super().__init__()
        self.rate = rate
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.rate
        shape = (x.shape[0],) + (1,) * (x.dim() - 1)
        kept = torch.rand(shape, device=x.device) < keep
        return x * (kept / keep if self.scale_by_keep else kept).to(x.dtype)


def _replace_drop_paths(part: nn.Module) -> None:
    for module in part.modules():
        for name, child in module.named_children():
            if type(child) is DropPath and 0 < child.drop_prob < 1:
                setattr(module, name, _DropPath(child.drop_prob, child.scale_by_keep))


class EagerModel(nn.Module):
    """Runs a model without its compiled programs, which serve training only.

    Args:
        model: takes anything.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # Whatever evaluates a model restores the mode that it found.
        self.train(model.training)

    def forward(self, *args: object, **kwargs: object) -> object:
        """Returns what the model does."""
        with torch.compiler.set_stance("force_eager"):
            return self.model(*args, **kwargs)
