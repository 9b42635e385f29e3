"""Checkpoints that this project has saved."""

import re
from collections.abc import Mapping

from torch import Tensor

from vitadapter.checkpoint.family import Conversion, Family

__all__ = ["OWN"]

_NET = re.compile(r"(?:^|(?P<path>.+?)\.)net\.")


def _backbone_path(state_dict: Mapping[str, Tensor]) -> str | None:
    """Path of the backbone, which is what has the net, in a model of ours; None without a net."""
    found = next(filter(None, map(_NET.match, state_dict)), None)
    return None if found is None else found["path"] or ""


def _convert(state_dict: Mapping[str, Tensor]) -> Conversion:
    return Conversion(dict(state_dict), backbone_path=_backbone_path(state_dict))


OWN = Family(
    "vitadapter",
    "saved by this project: a whole model or its backbone",
    lambda state_dict: _backbone_path(state_dict) is not None,
    _convert,
)
