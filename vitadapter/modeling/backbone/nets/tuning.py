"""Training little of a net, or little that is added to it, while its own weights stay frozen."""

import copy
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from vitadapter.layers.fast import linear

if TYPE_CHECKING:
    from .plain_net import PlainNet

__all__ = [
    "LoRA",
    "LoRALinear",
    "TrainedParts",
    "Tuning",
    "VisualPrompts",
    "is_added",
    "merge_lora",
    "tune",
]

# The linear layers of all nets, by their names inside a block. The joint projection of timm's
# ParallelScalingBlock is not among them, because timm reads its weight without calling it.
_PROJECTIONS = {
    "qkv": r"(?:.*\.)?(?:self_)?attn\.(?:qkv|in_proj|[qkv]_proj)",
    "proj": r"(?:.*\.)?(?:self_)?attn\.(?:proj|out_proj)",
    "fc1": r"(?:(?:.*\.)?mlp\.fc1(?:_[gx])?|linear1)",
    "fc2": r"(?:(?:.*\.)?mlp\.fc2|linear2)",
}
_ADDED = re.compile(r"(?:^|\.)(?:prompts|lora_[ab])$")


class Tuning(ABC):
    """Something that is trained in a net whose own weights are frozen; see `tune`."""

    @abstractmethod
    def add_to(self, net: "PlainNet") -> None:
        """Adds it to a net, in place.

        Raises:
            ValueError: the net has no place for it.
        """

    def trains(self, name: str) -> bool:
        """Whether a parameter of the net itself is trained, by its name in the net."""
        return False


def tune(net: "PlainNet", tuning: Sequence[Tuning]) -> None:
    """Freezes a net and adds what is trained instead, in place; nothing happens without a tuning.

    Args:
        net: a net, of which only what `tuning` says is trained from now on. The names of its own
            weights stay the same, so that checkpoints of the plain net fit.
        tuning: may have several elements.

    Raises:
        TypeError: `tuning` is not a list of such elements.
        ValueError: the net is tuned already, or has no place for one of them.
    """
    if not _is_list(tuning) or not all(isinstance(part, Tuning) for part in tuning):
        raise TypeError(
            f"tuning must be a list of LoRA, VisualPrompts or TrainedParts, got {tuning!r}"
        )
    if getattr(net, "tuning", ()):
        raise ValueError(f"{type(net).__name__} is tuned already: give all tuning at once")
    net.tuning = tuple(tuning)
    if net.tuning:
        net.requires_grad_(False)
    for part in net.tuning:
        part.add_to(net)


def is_added(name: str) -> bool:
    """Whether a parameter is one that a tuning adds, which no pre-trained file has.

    Args:
        name: its dotted name.
    """
    return _ADDED.search(name) is not None


def _is_list(value: object) -> bool:
    """Whether it is a sequence, which a text is not."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_whole(value: object) -> bool:
    """Whether it is an integer, which True is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


class VisualPrompts(Tuning):
    """Visual prompt tuning (VPT-deep, arXiv 2203.12119): each block has learnt prompt tokens.

    All patches attend to the prompts of their block, in blocks with windows from every window.
    Prompts have no position, neither absolute nor relative nor rotary. What a block makes of its
    prompts is dropped, since the next block has its own.

    Args:
        num_prompts: prompt tokens of each block.

    Raises:
        ValueError: `num_prompts` is not an integer of at least 1.
    """

    def __init__(self, num_prompts: int = 50) -> None:
        if not _is_whole(num_prompts) or num_prompts < 1:
            raise ValueError(f"num_prompts must be an integer of at least 1, got {num_prompts!r}")
        self.num_prompts = num_prompts

    def add_to(self, net: "PlainNet") -> None:
        """Adds `prompts` (depth, P, C), uniform as in VPT's code."""
        # The parameter is there, but None, in nets that pass prompts to their blocks.
        if "prompts" not in net._parameters or net.prompts is not None:
            raise ValueError(
                f"a net must be one of ours, without prompts, to get prompts; {type(net).__name__} "
                "is not"
            )
        prompts = torch.empty(net.depth, self.num_prompts, net.embed_dim)
        bound = math.sqrt(6.0 / (3 * net.patch_size**2 + net.embed_dim))
        net.prompts = nn.Parameter(nn.init.uniform_(prompts, -bound, bound))
        for module in net.modules():
            if hasattr(module, "num_prefix_tokens"):  # timm's attention does not rotate these
                module.num_prefix_tokens += self.num_prompts


class LoRALinear(nn.Linear):
    """A linear layer with a trained update of low rank (LoRA, arXiv 2106.09685).

    Args:
        layer: the frozen layer, whose parameters are taken, with their names.
        rank: rank of the update.
        scale: factor of the update.
        dropout: probability with which an input of the update is zeroed in training.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = scale
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        weight = layer.weight.detach()
        self.lora_a = nn.Parameter(weight.new_empty(rank, layer.in_features))
        self.lora_b = nn.Parameter(weight.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., out_features)."""
        update = linear(linear(self.dropout(x), self.lora_a), self.lora_b)
        return linear(x, self.weight, self.bias) + self.scale * update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Returns a plain layer with the same outputs; its weight is new, its bias shared.

        The new weight is computed in float32 at least and has the old one's precision.
        """
        layer = nn.Linear(self.in_features, self.out_features, device="meta")
        old = self.weight
        exact = torch.promote_types(old.dtype, torch.float32)
        update = self.scale * (self.lora_b.to(exact) @ self.lora_a.to(exact))
        layer.weight = nn.Parameter((old.to(exact) + update).to(old.dtype), old.requires_grad)
        layer.bias = self.bias
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """What `print` says of the layer."""
        return f"{super().extra_repr()}, rank={len(self.lora_a)}, scale={self.scale:g}"


class LoRA(Tuning):
    """Low-rank updates (LoRA, arXiv 2106.09685) of linear layers of all blocks.

    At the start they are zero, so that the net computes what it did before. `merge_lora` adds them
    to the weights, after which the net costs as much as without them.

    Args:
        rank: rank of each update.
        alpha: the updates are multiplied by `alpha / rank`; None for `rank`.
        dropout: probability with which an input of an update is zeroed in training.
        projections: the layers that have one: "qkv" and "proj" of the attention, "fc1" and "fc2"
            of the MLP (whatever they are called in the net).

    Raises:
        ValueError: `rank` is not an integer of at least 1, `alpha` is not positive and finite,
            `dropout` is outside [0, 1), or a projection is unknown or named twice.
    """

    def __init__(
        self,
        rank: int = 16,
        *,
        alpha: float | None = None,
        dropout: float = 0.0,
        projections: Sequence[str] = ("qkv", "proj"),
    ) -> None:
        alpha = rank if alpha is None else alpha
        if not (
            _is_whole(rank)
            and rank >= 1
            and _is_number(alpha)
            and 0 < alpha < math.inf
            and _is_number(dropout)
            and 0 <= dropout < 1
        ):
            raise ValueError(
                "rank must be an integer of at least 1, alpha positive and finite, and dropout in "
                f"[0, 1), got {rank=}, {alpha=}, {dropout=}"
            )
        known = list(_PROJECTIONS)
        if not (
            _is_list(projections)
            and projections
            and all(name in known for name in projections)
            and len(set(projections)) == len(projections)
        ):
            raise ValueError(
                f"projections must be a list of some of {', '.join(known)}, each once, "
                f"got {projections!r}"
            )
        self.rank = rank
        self.scale = alpha / rank
        self.dropout = dropout
        self.projections = tuple(projections)

    def add_to(self, net: "PlainNet") -> None:
        """Replaces the linear layers by a `LoRALinear` each."""
        for projection in self.projections:
            pattern = re.compile(_PROJECTIONS[projection])
            found = [
                (block, name, layer)
                for block in cast(nn.ModuleList, getattr(net, "blocks", ()))
                for name, layer in block.named_modules()
                if type(layer) is nn.Linear and pattern.fullmatch(name)
            ]
            if not found:
                raise ValueError(
                    f"the blocks of {type(net).__name__} must have linear layers for LoRA's "
                    f"projection {projection!r}, but have none"
                )
            for block, name, layer in found:
                parent, _, last = name.rpartition(".")
                tuned = LoRALinear(layer, self.rank, self.scale, self.dropout)
                setattr(block.get_submodule(parent), last, tuned)


def merge_lora(model: nn.Module) -> nn.Module:
    """Adds the updates of LoRA to the weights.

    Args:
        model: a model or a part of one.

    Returns:
        A copy with plain linear layers, whose state dict is that of the model without LoRA. The
        model itself if it has no LoRA.
    """
    if not any(isinstance(module, LoRALinear) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    merged = {layer: layer.merged() for layer in model.modules() if isinstance(layer, LoRALinear)}
    # A layer that is used in several places is replaced in all of them.
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if isinstance(layer, LoRALinear) and name:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, merged[layer])
    return merged[model] if isinstance(model, LoRALinear) else model


class TrainedParts(Tuning):
    """Parameters of the net that are trained although the others are frozen.

    `["bias"]` are all biases (BitFit, arXiv 2106.10199), in BEiT with those of relative positions;
    `["patch_embed", "pos_embed"]` leaves only the blocks frozen.

    Args:
        substrings: a parameter is trained if its name in the net contains one of these.

    Raises:
        ValueError: `substrings` is not a list of strings, or is empty or has an empty string.
    """

    def __init__(self, substrings: Sequence[str]) -> None:
        if not (
            _is_list(substrings)
            and substrings
            and all(isinstance(part, str) and part for part in substrings)
        ):
            raise ValueError(f"substrings must be a list of parts of names, got {substrings!r}")
        self.substrings = tuple(substrings)

    def add_to(self, net: "PlainNet") -> None:
        """Makes the parameters trainable."""
        for part in self.substrings:
            found = [p for name, p in net.named_parameters() if part in name]
            if not found:
                raise ValueError(
                    f"substrings must be parts of the names of {type(net).__name__}'s parameters, "
                    f"but none contains {part!r}"
                )
            for parameter in found:
                parameter.requires_grad_(True)

    def trains(self, name: str) -> bool:
        """See `Tuning.trains`."""
        return any(part in name for part in self.substrings)
