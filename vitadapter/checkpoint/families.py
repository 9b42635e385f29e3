"""All families of checkpoints, and which one a file belongs to."""

import re
from collections.abc import Mapping

from torch import Tensor

from vitadapter.checkpoint.augreg import AUGREG
from vitadapter.checkpoint.family import Conversion, Family
from vitadapter.checkpoint.official_detectors import OFFICIAL_FAMILIES
from vitadapter.checkpoint.plain_vit import DINOV2, MAE, TIMM_VIT

__all__ = ["FAMILIES", "find_family", "recognise"]

_NET = re.compile(r"(?:^|(?P<path>.+?)\.)net\.")


def _own_backbone_path(state_dict: Mapping[str, Tensor]) -> str | None:
    """Where a model of ours has its backbone, which is what has the net; None without a net."""
    for name in state_dict:
        if found := _NET.match(name):
            return found["path"] or ""
    return None


def _convert_own(state_dict: Mapping[str, Tensor]) -> Conversion:
    path = _own_backbone_path(state_dict)
    return Conversion(dict(state_dict), scope="model", backbone_path=path)


_OWN = Family(
    "vitadapter",
    "saved by this project: a whole model or its backbone",
    lambda state_dict: _own_backbone_path(state_dict) is not None,
    (_convert_own,),
)

# The first that recognises a file has it: what is more special comes first.
FAMILIES: tuple[Family, ...] = (
    _OWN,
    *OFFICIAL_FAMILIES,
    AUGREG,
    MAE,
    DINOV2,
    TIMM_VIT,
)


def _known() -> str:
    return "; ".join(f"{family.name} ({family.description})" for family in FAMILIES)


def recognise(state_dict: Mapping[str, Tensor]) -> Family:
    """The family of a state dict, from its names.

    Raises:
        ValueError: none; lists those that are known.
    """
    for family in FAMILIES:
        if family.recognises(state_dict):
            return family
    raise ValueError(
        f"its names are of no known family: it has {len(state_dict)} entries such as "
        f"{sorted(state_dict)[:3]}. Known: {_known()}"
    )


def find_family(name: str) -> Family:
    """The family called ``name``.

    Raises:
        ValueError: there is none; lists those that are known.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ValueError(f"there is no family {name!r}. Known: {_known()}")
