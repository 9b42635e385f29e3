"""What a family of checkpoints is, what its converter returns, and what families share."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

__all__ = [
    "BIAS_INDEX",
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
    "entries_below",
    "first_few",
    "implied_layer_scale",
]

# Why entries are left out.
HEAD = "head of the pre-training task"
HEADS = {
    r"(fc_norm|head|head_dist|pre_logits|attn_pool)\.": HEAD,
    r"mask_token$": "token of the pre-training task",
}
"""Reasons by regular expression of the beginning of a name, for `convert_names`."""
ROPE = "rotary positions, which the net computes itself"
BIAS_INDEX = "computed from the size of the bias table"

PYRAMID = ("level_embed", "up1.0.weight", "fpn1.0.weight")
"""Each official adapter and baseline (plain ViT or BEiT) has one of these entries, a pre-trained
ViT has none."""

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
    """Tensors under our names, and what became of the other entries of the file.

    Converters return it. `fitting.fit` then brings it to the shapes of a model and fills in the
    last three attributes. Until then it has tokens that not every net has (`cls_token` ...).

    Attributes:
        tensors: by name.
        backbone_path: path of the backbone (`ViTAdapter`, `ViTBaseline` ...) in these names: ""
            if they are of a backbone alone, None if they are of a plain ViT alone.
        renamed: new name by old name, where they differ.
        dropped: why an entry is left out, by its name in the file.
        implied: values of entries that files leave out because they are constant, by regular
            expression of their names relative to the net.
        resized: how a tensor was resized, by name.
        wrong_shape: the file's and the model's shape, by name.
        unexpected: names that the model does not have.
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
        """Removes the tensor `name` and returns it; the report will say why it was dropped."""
        old = next((old for old, new in self.renamed.items() if new == name), name)
        self.renamed.pop(old, None)
        self.dropped[old] = why
        return self.tensors.pop(name)


Converter = Callable[[Mapping[str, Tensor]], Conversion]


@dataclass(frozen=True)
class Family:
    """Checkpoints that use the same names.

    Attributes:
        name: what `scripts/convert_checkpoint.py --family` calls it.
        description: one line.
        recognises: whether a state dict is of this family, judged by its names.
        convert: the converter, a pure function.
        alternatives: further converters, if classes of nets have different names for the same
            thing. The one whose result has most names in common with the net is used.
    """

    name: str
    description: str
    recognises: Callable[[Mapping[str, Tensor]], bool]
    convert: Converter
    alternatives: Sequence[Converter] = ()

    @property
    def converters(self) -> tuple[Converter, ...]:
        """The converter and its alternatives."""
        return (self.convert, *self.alternatives)


def first_few(names: Sequence[str]) -> str:
    """Up to three names, followed by "..." if there are more."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def entries_below(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with a prefix, under the rest of their names."""
    return {n[len(prefix) :]: t for n, t in state_dict.items() if n.startswith(prefix)}


def check_names(
    kind: str,
    needed: Sequence[str],
    state_dict: Mapping[str, Tensor],
    names: Collection[str] | None = None,
) -> None:
    """Refuses a state dict that is not a pre-trained ViT of a family.

    Args:
        kind: what messages call the family.
        needed: entries that all its files have.
        state_dict: as it was read.
        names: of the entries, if `needed` does not use the names of the file.

    Raises:
        ValueError: an entry is missing, or one is of an official backbone.
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
    """Converts names one by one.

    Args:
        to_ours: returns our name for one of the file, or None if there is none.
        state_dict: of the family.
        drop: why entries are left out, by regular expression of the beginning of their names.

    Returns:
        The same tensors, under names relative to the net.
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
    """Converts names by patterns, for families that differ from a net in names only.

    Args:
        state_dict: of the family.
        drop: see `convert_by`.
        rename: (regular expression, replacement) pairs, all applied to each name in this order.
        implied: see `Conversion`.

    Returns:
        The same tensors, under names relative to the net.
    """

    def to_ours(name: str) -> str:
        for pattern, replacement in rename:
            name = re.sub(pattern, replacement, name)
        return name

    return replace(convert_by(to_ours, state_dict, drop=drop), implied=implied or {})


def implied_layer_scale(state_dict: Mapping[str, Tensor]) -> Mapping[str, float]:
    """`Conversion.implied` of a file that may have no layer scale, which stands for a scale of 1.

    A net with layer scale initialises it near 0, so that pre-trained blocks would do nothing.
    """
    has_layer_scale = any(re.search(f"{_LAYER_SCALE}$", name) for name in state_dict)
    return {} if has_layer_scale else {rf"blocks\.\d+{_LAYER_SCALE}": 1.0}
