"""Parameter groups by the rules of the official recipes."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

from detectron2.solver.build import reduce_param_groups
from torch import Tensor, nn

from vitadapter.modeling.backbone.nets.tuning import is_added

__all__ = [
    "FactorByName",
    "LayerDecay",
    "Mask2FormerLayerDecay",
    "NoDecayByName",
    "NoDecayOneDim",
    "get_optimizer_params",
]

_BLOCK = re.compile(r"(?:^|\.)net\.blocks\.(\d+)\.")
# These are the names in all nets. Tables of relative positions belong to the blocks.
_EMBED = re.compile(
    r"(?:^|\.)net\.(?:(?:patch_embed|visual_embed|norm_pre|rope)\.|"
    r"(?:pos_embed|cls_token|reg_token|register_tokens|mask_token)$)"
)
_MASK2FORMER_EMBEDDING = re.compile(
    r"(?:^|\.)predictor\.(?:query_feat|query_embed|level_embed|class_embed|mask_embed)\."
)


class ParamGroup(TypedDict, total=False):
    """One entry of an optimizer's `params`."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


class LayerDecay:
    """Layer-wise learning-rate decay by the factor `rate ** (num_layers + 1 - layer)`.

    Layer 0 is the embedding of the wrapped `net`, layer i + 1 its block i, and layer
    `num_layers + 1` (factor 1) everything else: adapter, neck, heads, and what a tuning adds to
    the net (LoRA's updates, prompts), since that is new.

    Args:
        rate: in (0, 1].
        num_layers: number of blocks of the net.

    Raises:
        ValueError: `rate` is outside (0, 1], or `num_layers` is less than 1.
    """

    def __init__(self, rate: float, num_layers: int) -> None:
        if not 0.0 < rate <= 1.0 or num_layers < 1:
            raise ValueError(
                f"rate must lie in (0, 1] and num_layers be >= 1, got {rate=}, {num_layers=}"
            )
        self.rate = rate
        self.num_layers = num_layers

    def __call__(self, name: str) -> float:
        """Returns the learning-rate factor of the parameter with this dotted name.

        Raises:
            ValueError: the name belongs to a block beyond `num_layers`.
        """
        block = _BLOCK.search(name)
        if is_added(name):
            layer = self.num_layers + 1
        elif block is not None:
            layer = int(block.group(1)) + 1
            if layer > self.num_layers:
                raise ValueError(f"num_layers={self.num_layers} is too small for parameter {name}")
        else:
            layer = 0 if _EMBED.search(name) else self.num_layers + 1
        return self.rate ** (self.num_layers + 1 - layer)


class Mask2FormerLayerDecay(LayerDecay):
    """Layer decay in which the head's embeddings learn as slowly as the net's.

    The official segmentation code puts every parameter whose name contains that of a class, mask,
    level or query embedding into layer 0, although these are new and not pre-trained. For rate 0.9
    and 24 layers, their learning rate is 0.0718 times the head's. This looks unintended, but the
    published results were trained with it. `LayerDecay` gives them the head's rate, as the official
    panoptic recipe does.
    """

    def __call__(self, name: str) -> float:
        """See `LayerDecay`."""
        if _MASK2FORMER_EMBEDDING.search(name):
            return self.rate ** (self.num_layers + 1)
        return super().__call__(name)


class FactorByName:
    """A factor for parameters whose dotted name contains a string, 1 for others.

    Args:
        factors: maps strings to factors; if a name contains several of them, the first one counts.

    Raises:
        ValueError: a factor is negative.
    """

    def __init__(self, factors: Mapping[str, float]) -> None:
        if not all(factor >= 0 for factor in factors.values()):
            raise ValueError(f"factors must not be negative, got {dict(factors)}")
        self.factors = dict(factors)

    def __call__(self, name: str) -> float:
        """Returns the factor of the parameter with this dotted name."""
        return next((factor for part, factor in self.factors.items() if part in name), 1.0)


class NoDecayByName:
    """Exempts parameters whose dotted name contains one of some strings from weight decay.

    The default strings are those of the official recipes without layer decay. As in the official
    code, layer scale and norms with another name (`spm.stem.1`) do decay. So do the norms that
    belong to a convolution (`cls_subnet.0.norm`), which the official code calls bn or gn.

    Args:
        substrings: parts of names.
    """

    def __init__(
        self, substrings: Sequence[str] = ("level_embed", "pos_embed", "norm", "bias")
    ) -> None:
        self.substrings = tuple(substrings)

    def __call__(self, name: str, parameter: Tensor) -> bool:
        """Whether the parameter is exempt."""
        name = name.replace(".norm.", ".")
        return any(part in name for part in self.substrings)


class NoDecayOneDim:
    """Exempts vectors and biases from weight decay, as the official recipes with layer decay do.

    Embeddings with more than one dimension, such as `pos_embed`, do decay.
    """

    def __call__(self, name: str, parameter: Tensor) -> bool:
        """Whether the parameter is exempt."""
        return parameter.ndim <= 1 or name.endswith(".bias")


def get_optimizer_params(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    no_decay: Callable[[str, Tensor], bool],
    lr_factor_func: Callable[[str], float] | None = None,
    decay_factor_func: Callable[[str], float] | None = None,
) -> list[ParamGroup]:
    """Makes the parameter groups of an optimizer, like Detectron2's function of a similar name.

    Args:
        model: the model, whose frozen parameters are left out.
        base_lr: learning rate, before the factor.
        weight_decay: weight decay of parameters that are not exempt, before the factor.
        no_decay: tells from dotted name and parameter whether its weight decay is 0.
        lr_factor_func: maps dotted names to learning-rate factors; None for 1 everywhere.
        decay_factor_func: the same for the weight decay of parameters that are not exempt.

    Returns:
        Groups with `params`, `lr` and `weight_decay`, one for each pair of values.

    Raises:
        ValueError: the model has no trainable parameter.
    """
    groups: list[ParamGroup] = [
        {
            "params": [parameter],
            "lr": base_lr * (lr_factor_func(name) if lr_factor_func is not None else 1.0),
            "weight_decay": 0.0
            if no_decay(name, parameter)
            else weight_decay * (decay_factor_func(name) if decay_factor_func is not None else 1.0),
        }
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    if not groups:
        raise ValueError("the model has no trainable parameter")
    return reduce_param_groups(groups)
