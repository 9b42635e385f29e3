"""What a family of checkpoints is, what its converter returns, and the rules families share."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

__all__ = [
    "BIAS_INDEX",
    "FINAL_NORM",
    "HEAD",
    "HEADS",
    "PYRAMID",
    "ROPE",
    "Conversion",
    "Converter",
    "Family",
    "Resized",
    "check_names",
    "convert_by",
    "convert_names",
    "implied_layer_scale",
]

# Why entries are left out. The final norm has the width of the adapter's own norms, which it must
# never reach.
FINAL_NORM = "final norm, which the adapter does without"
HEAD = "head of the pre-training task"
HEADS = {
    r"(norm|fc_norm)\.": FINAL_NORM,
    r"(head|head_dist|pre_logits|attn_pool)\.": HEAD,
    r"mask_token$": "token of the pre-training task",
}
"""By regular expression of the beginning of a name, as :func:`convert_names` takes it."""
ROPE = "rotary positions, which the net computes"
BIAS_INDEX = "follows from the size of the bias table"

PYRAMID = ("level_embed", "up1.0.weight", "fpn1.0.weight")
"""Entries of the official adapters, of their plain-ViT baseline and of their BEiT baseline, one of
which each has; a pre-trained ViT has none."""

_LAYER_SCALE = r"\.(gamma_?[12]|ls[12]\.gamma)"


@dataclass(frozen=True)
class Resized:
    """How one tensor was brought to the model's shape."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    method: str

    def __str__(self) -> str:
        return f"{self.before} to {self.after}, {self.method}"


@dataclass
class Conversion:
    """Tensors under our names, and what became of the others.

    Converters return it; ``fitting.fit`` then brings it to the shapes of a model and fills in the
    last three attributes. Until then it has tokens that not every net has (``cls_token`` ...).

    Attributes:
        tensors: by name.
        backbone_path: where in these names the backbone is (``ViTAdapter``, ``ViTBaseline`` ...):
            for whole models a path, "" for the backbone alone, None for the plain ViT alone.
        renamed: new name by old name, of those that differ.
        dropped: why, by name in the file.
        implied: value by regular expression (of names relative to the net) of those entries that
            files leave out because they are constant.
        resized: how, by name.
        wrong_shape: the file's and the model's shape, by name.
        unexpected: names that have no place.
    """

    tensors: dict[str, Tensor]
    backbone_path: str | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    implied: Mapping[str, float] = field(default_factory=dict)
    resized: dict[str, Resized] = field(default_factory=dict)
    wrong_shape: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)

    @property
    def scope(self) -> str:
        """What the names are relative to."""
        return {None: "net", "": "backbone"}.get(self.backbone_path, "model")

    def take(self, name: str, why: str) -> Tensor:
        """Takes the tensor ``name`` out; the report will say why it was dropped."""
        old = next((old for old, new in self.renamed.items() if new == name), name)
        self.renamed.pop(old, None)
        self.dropped[old] = why
        return self.tensors.pop(name)


Converter = Callable[[Mapping[str, Tensor]], Conversion]


@dataclass(frozen=True)
class Family:
    """Checkpoints with the same names.

    Attributes:
        name: as ``scripts/convert_checkpoint.py --family`` takes it.
        description: one line.
        recognises: whether a state dict is of this family, from its names.
        convert: a pure function.
        alternatives: further ones, where nets of different classes call the same thing
            differently; the one whose names fit the net best is used.
    """

    name: str
    description: str
    recognises: Callable[[Mapping[str, Tensor]], bool]
    convert: Converter
    alternatives: Sequence[Converter] = ()

    @property
    def converters(self) -> tuple[Converter, ...]:
        """All of them."""
        return (self.convert, *self.alternatives)


def check_names(
    kind: str,
    needed: Sequence[str],
    state_dict: Mapping[str, Tensor],
    names: Collection[str] | None = None,
) -> None:
    """Refuses what is no pre-trained ViT of a family.

    Args:
        kind: of the family, for the message.
        needed: entries that all its files have.
        state_dict: as it was read.
        names: of the entries as ``needed`` calls them, where these are not those of the file.

    Raises:
        ValueError: some are missing, or there are some of an official backbone.
    """
    names = state_dict if names is None else names
    missing = [name for name in needed if name not in names]
    foreign = [name for name in PYRAMID if name in names]
    if missing or foreign:
        wrong = f"{missing} are missing" if missing else f"{foreign} are too many"
        raise ValueError(
            f"{kind} has {', '.join(needed)}, and no pyramid ({', '.join(PYRAMID)}), but {wrong} "
            f"among {len(state_dict)} entries such as {sorted(state_dict)[:3]}"
        )


def convert_by(
    to_ours: Callable[[str], str | None],
    state_dict: Mapping[str, Tensor],
    *,
    drop: Mapping[str, str],
) -> Conversion:
    """Conversion name by name.

    Args:
        to_ours: our name for one of the file; None where there is none.
        state_dict: of the family.
        drop: why, by regular expression of the beginning of the names to leave out.

    Returns:
        Conversion: with the same tensors, names relative to the net.
    """
    conversion = Conversion({})
    for name, tensor in state_dict.items():
        reason = next((why for pattern, why in drop.items() if re.match(pattern, name)), None)
        if reason is not None:
            conversion.dropped[name] = reason
        elif (new := to_ours(name)) is None:
            conversion.unexpected.append(name)
        else:
            conversion.tensors[new] = tensor
            if new != name:
                conversion.renamed[name] = new
    return conversion


def convert_names(
    state_dict: Mapping[str, Tensor],
    *,
    drop: Mapping[str, str],
    rename: Sequence[tuple[str, str]] = (),
    implied: Mapping[str, float] | None = None,
) -> Conversion:
    """Conversion by patterns, for families that differ from a net in names only.

    Args:
        state_dict: of the family.
        drop: as of :func:`convert_by`.
        rename: (regular expression, replacement) pairs, all applied to each name.
        implied: of the conversion.
    """

    def to_ours(name: str) -> str:
        for pattern, replacement in rename:
            name = re.sub(pattern, replacement, name)
        return name

    return replace(convert_by(to_ours, state_dict, drop=drop), implied=implied or {})


def implied_layer_scale(state_dict: Mapping[str, Tensor]) -> Mapping[str, float]:
    """``Conversion.implied`` of a file that may be of a model without layer scale, which means 1.

    Nets that are pre-trained with layer scale start it near 0, where their blocks would do nothing.
    """
    has_layer_scale = any(re.search(f"{_LAYER_SCALE}$", name) for name in state_dict)
    return {} if has_layer_scale else {rf"blocks\.\d+{_LAYER_SCALE}": 1.0}
