"""Converts checkpoints of the official ViT-Adapter release (mmcv state dicts), and back.

The official backbones are subclasses of their net (a plain ViT, BEiT or Uni-Perceiver); ours wrap
it. Necks and heads differ in their names, which are in `layouts.py`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from vitadapter.checkpoint.family import (
    BIAS_INDEX,
    PYRAMID,
    Conversion,
    Family,
    convert_by,
    entries_below,
    first_few,
    implied_layer_scale,
)

__all__ = [
    "BACKBONE",
    "NameTable",
    "OfficialLayout",
    "convert_official",
    "convert_official_backbone",
    "export_official",
    "export_official_backbone",
]

_INDEX = re.compile(r"\{([a-z])(?:\+(\d+))?\}")


class _Pattern:
    """A prefix such as `"backbone.fpn_lateral{i+2}."`."""

    def __init__(self, text: str) -> None:
        self.text = text
        parts = _INDEX.split(text)  # literal, index, offset, literal, ...
        self._offsets = {
            index: int(offset or 0) for index, offset in zip(parts[1::3], parts[2::3], strict=True)
        }
        groups = [rf"(?P<{index}>\d+)" for index in parts[1::3]]
        literals = [re.escape(literal) for literal in parts[::3]]
        self._regex = re.compile(
            "".join(a + b for a, b in zip(literals, [*groups, ""], strict=True))
        )

    def match(self, name: str) -> tuple[dict[str, int], str] | None:
        """The indices and what follows the prefix; None if the name does not begin with it."""
        found = self._regex.match(name)
        if found is None:
            return None
        indices = {index: int(found[index]) - self._offsets[index] for index in self._offsets}
        return None if min(indices.values(), default=0) < 0 else (indices, name[found.end() :])

    def fill(self, indices: dict[str, int]) -> str:
        return _INDEX.sub(lambda m: str(indices[m[1]] + int(m[2] or 0)), self.text)


def _rename(name: str, rows: Sequence[tuple[_Pattern, _Pattern]]) -> str | None:
    for old, new in rows:
        if found := old.match(name):
            return new.fill(found[0]) + found[1]
    return None


class NameTable:
    """Renames by prefix; the first row that matches is used.

    Args:
        rows: (official prefix, our prefix). `{i}` stands for a number, `{i+2}` for the same
            number plus 2: `("neck.lateral_convs.{i}.conv.", "backbone.fpn_lateral{i+2}.")`.
            Both sides of a row have the same letters. Where one prefix begins another, the longer
            one comes first.
    """

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        self._rows = [(_Pattern(official), _Pattern(ours)) for official, ours in rows]

    def to_ours(self, name: str) -> str | None:
        """Our name for an official one; None if no row matches."""
        return _rename(name, self._rows)

    def to_official(self, name: str) -> str | None:
        """The official name for one of ours; None if no row matches."""
        return _rename(name, [(ours, official) for official, ours in self._rows])


_BACKBONE = "backbone."
_DROPPED = {r".*\.relative_position_index$": BIAS_INDEX}


class _Net(NamedTuple):
    """A net of the official backbones.

    Attributes:
        name: for messages.
        needed: entries all of which only this net has.
        rows: of a `NameTable`, for those names of the backbone that change.
    """

    name: str
    needed: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]


_NETS = (
    _Net(
        "plain ViT",
        ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"),
        tuple((name, f"net.{name}") for name in ("patch_embed.", "pos_embed", "blocks.")),
    ),
    _Net(
        "BEiT",
        ("patch_embed.proj.weight", "blocks.0.attn.relative_position_bias_table"),
        (
            *((name, f"net.{name}") for name in ("patch_embed.", "cls_token", "blocks.")),
            *(("fpn1.", "up1."), ("fpn2.0.", "up2.")),
        ),
    ),
    _Net(
        "Uni-Perceiver",
        ("visual_embed.patch_embed.proj.weight", "layers.0.self_attn.in_proj.weight"),
        (("visual_embed.", "net.visual_embed."), ("layers.", "net.blocks.")),
    ),
)


@dataclass(frozen=True)
class OfficialLayout:
    """Names of one official head and its neck.

    Attributes:
        name: of the family.
        description: one line.
        markers: names that every file of the layout has and that, together, no other layout has.
        rows: of a `NameTable`, for all names outside `backbone.`. Names without a row are refused.
        backbone_path: path of the `ViTAdapter` in our model; "backbone" if the head reads it
            without a neck.
        ignored: why names are not needed by our model, by regular expression.
    """

    name: str
    description: str
    markers: Sequence[str]
    rows: Sequence[tuple[str, str]]
    backbone_path: str = "backbone.bottom_up"
    ignored: Mapping[str, str] = field(default_factory=dict)

    def recognises(self, state_dict: Mapping[str, Tensor]) -> bool:
        """Whether the state dict is a whole model of this layout."""
        return all(name in state_dict for name in self.markers)

    @property
    def family(self) -> Family:
        """The files of this layout."""
        convert = partial(convert_official, layout=self)
        return Family(self.name, self.description, self.recognises, convert)

    def table(self, net: _Net) -> NameTable:
        """The table for all names of a whole model."""
        ours = f"{self.backbone_path}."
        backbone = ((f"{_BACKBONE}{theirs}", f"{ours}{own}") for theirs, own in net.rows)
        return NameTable([*self.rows, *backbone, (_BACKBONE, ours)])


def _find_net(state_dict: Mapping[str, Tensor]) -> _Net:
    """The net of an official backbone."""
    nets = [net for net in _NETS if all(name in state_dict for name in net.needed)]
    # A bare pre-trained net has no pyramid.
    if len(nets) != 1 or not any(name in state_dict for name in PYRAMID):
        known = "; ".join(f"{net.name}: {', '.join(net.needed)}" for net in _NETS)
        raise ValueError(
            f"an official backbone has one of {', '.join(PYRAMID)} and the entries of one net "
            f"({known}), got {len(state_dict)} entries such as {sorted(state_dict)[:3]}"
        )
    return nets[0]


def convert_official_backbone(state_dict: Mapping[str, Tensor]) -> Conversion:
    """Converts an official backbone to a `ViTAdapter` or `ViTBaseline` over its net.

    Args:
        state_dict: entries of an official adapter or baseline on a plain ViT, BEiT or
            Uni-Perceiver, without the `backbone.` that precedes them in a whole detector or
            segmenter.

    Returns:
        The same tensors, in the same order; only BEiT's `relative_position_index` buffers are left
        out.

    Raises:
        ValueError: the entries are not those of an official backbone.
    """
    table = NameTable(_find_net(state_dict).rows)
    conversion = convert_by(lambda name: table.to_ours(name) or name, state_dict, drop=_DROPPED)
    return replace(conversion, backbone_path="", implied=implied_layer_scale(state_dict))


def export_official_backbone(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `convert_official_backbone`.

    Args:
        state_dict: of `ViTAdapter` or `ViTBaseline` over one of the official nets.

    Returns:
        A new dict with the same tensors, in the same order; without BEiT's
        `relative_position_index`.

    Raises:
        ValueError: the entries are not those of such a backbone.
    """
    for net in _NETS:
        table = NameTable(net.rows)
        if all(table.to_ours(name) in state_dict for name in net.needed):
            return {table.to_official(n) or n: tensor for n, tensor in state_dict.items()}
    raise ValueError(
        "a backbone over a ViT, BEiT or UniPerceiver is needed, "
        f"got {len(state_dict)} entries such as {sorted(state_dict)[:3]}"
    )


def convert_official(state_dict: Mapping[str, Tensor], layout: OfficialLayout) -> Conversion:
    """Converts the names of a whole official model to ours.

    Args:
        state_dict: in the official names.
        layout: of its neck and head.

    Returns:
        The same tensors, under the names of the whole model.

    Raises:
        ValueError: the layout does not know a name, or the backbone is not official.
    """
    backbone = entries_below(state_dict, _BACKBONE)
    table = layout.table(_find_net(backbone))
    conversion = convert_by(table.to_ours, state_dict, drop=_DROPPED | dict(layout.ignored))
    unknown = conversion.unexpected
    if unknown:
        raise ValueError(
            f"{layout.description} has no {first_few(unknown)} ({len(unknown)} unknown names)"
        )
    return replace(
        conversion,
        backbone_path=layout.backbone_path,
        implied=implied_layer_scale(backbone),
    )


def export_official(state_dict: Mapping[str, Tensor], layout: OfficialLayout) -> dict[str, Tensor]:
    """Converts the names of our whole model to the official ones: inverts `convert_official`.

    Args:
        state_dict: of our model.
        layout: of its neck and head.

    Returns:
        A new dict with the same tensors.

    Raises:
        ValueError: the layout does not know a name.
    """
    prefix, table = f"{layout.backbone_path}.", NameTable(layout.rows)
    official: dict[str, Tensor] = {}
    backbone: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        new = table.to_official(name)
        if new is not None:
            official[new] = tensor
        elif name.startswith(prefix):
            backbone[name.removeprefix(prefix)] = tensor
        else:
            raise ValueError(f"{layout.description} has nothing like {name}")
    exported = export_official_backbone(backbone).items()
    return official | {f"{_BACKBONE}{name}": tensor for name, tensor in exported}


def _is_backbone(state_dict: Mapping[str, Tensor]) -> bool:
    """A pre-trained ViT has no pyramid; the official adapters and baselines have one."""
    return any(name in state_dict for name in PYRAMID) and any(
        net.needed[0] in state_dict for net in _NETS
    )


BACKBONE = Family(
    "official_backbone",
    "backbone of the official ViT-Adapter release, alone or in a model with another head",
    _is_backbone,
    convert_official_backbone,
)
