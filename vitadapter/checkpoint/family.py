"""What a family of checkpoints is: how to recognise one, and what its tensors are called here."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

__all__ = [
    "LAYER_SCALE_OF_ONE",
    "Conversion",
    "Converter",
    "Family",
    "Scope",
    "convert_names",
    "describe",
]

Scope = Literal["net", "backbone", "model"]

LAYER_SCALE_OF_ONE = {r"blocks\.\d+\.(gamma_?[12]|ls[12]\.gamma)": 1.0}
"""What files of models without layer scale leave out, as :attr:`Conversion.implied` has it.

Nets that are pre-trained with layer scale start it near 0, where their blocks would do nothing."""


@dataclass(frozen=True)
class Conversion:
    """Tensors under our names, and what became of the others.

    Attributes:
        tensors: by name. Nothing is resized yet, and tokens that not every net has (``cls_token``
            and registers) are still there: both depend on the net.
        scope: what the names are relative to: the plain ViT ("net"), what wraps it ("backbone":
            ``ViTAdapter``, ``ViTBaseline`` ...), or the whole model.
        backbone_path: for whole models, where in these names the backbone is.
        renamed: new name by old name, of those that differ.
        dropped: why, by name in the file.
        implied: value by regular expression (of names relative to the net) of those entries that
            files leave out because they are constant.
    """

    tensors: Mapping[str, Tensor]
    scope: Scope = "net"
    backbone_path: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    implied: Mapping[str, float] = field(default_factory=dict)


Converter = Callable[[Mapping[str, Tensor]], Conversion]


@dataclass(frozen=True)
class Family:
    """Checkpoints with the same names.

    Attributes:
        name: as ``scripts/convert_checkpoint.py --family`` takes it.
        description: one line.
        recognises: whether a state dict is of this family, from its names.
        converters: pure functions. There are several where nets of different classes call the
            same thing differently; the one whose names fit the net best is used.
    """

    name: str
    description: str
    recognises: Callable[[Mapping[str, Tensor]], bool]
    converters: Sequence[Converter]


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
        drop: why, by regular expression of the names to leave out.
        rename: (regular expression, replacement) pairs, all applied to each name.
        implied: of the conversion.

    Returns:
        Conversion: with the same tensors, names relative to the net.
    """
    tensors, renamed, dropped = {}, {}, {}
    for name, tensor in state_dict.items():
        reason = next((why for pattern, why in drop.items() if re.match(pattern, name)), None)
        if reason is not None:
            dropped[name] = reason
            continue
        new = name
        for pattern, replacement in rename:
            new = re.sub(pattern, replacement, new)
        tensors[new] = tensor
        if new != name:
            renamed[name] = new
    return Conversion(tensors, renamed=renamed, dropped=dropped, implied=implied or {})


def describe(
    state_dict: Mapping[str, Tensor], tensors: Mapping[str, Tensor], reasons: Mapping[str, str]
) -> Conversion:
    """What a pure function from state dict to state dict has renamed and left out.

    Args:
        state_dict: what it was given.
        tensors: what it returned, names relative to the net.
        reasons: why, by regular expression of the names that it leaves out; the first that
            matches.

    Returns:
        Conversion: tensors that it passed on unchanged count as renamed, where their name is new.
    """
    new_names = {id(tensor): name for name, tensor in tensors.items()}
    renamed, dropped = {}, {}
    for old, tensor in state_dict.items():
        new = new_names.get(id(tensor))
        if new is None and old not in tensors:
            found = (why for pattern, why in reasons.items() if re.search(pattern, old))
            dropped[old] = next(found, "no part of the net")
        elif new is not None and new != old:
            renamed[old] = new
    return Conversion(tensors, renamed=renamed, dropped=dropped)
