"""All families of checkpoints, and how the family of a file is found."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from vitadapter.checkpoint.families.augreg import AUGREG
from vitadapter.checkpoint.families.beit import BEIT
from vitadapter.checkpoint.families.dinov3 import DINOV3
from vitadapter.checkpoint.families.eva02 import EVA02
from vitadapter.checkpoint.families.own import OWN
from vitadapter.checkpoint.families.plain_vit import DINOV2, MAE, TIMM_VIT
from vitadapter.checkpoint.families.uni_perceiver import UNI_PERCEIVER
from vitadapter.checkpoint.families.vitdet import EVA02_DET, VITDET
from vitadapter.checkpoint.family import Conversion, Converter, Family, entries_below
from vitadapter.checkpoint.official.layouts import OFFICIAL_FAMILIES

__all__ = ["FAMILIES", "find_family", "recognise"]

# The first that recognises a file is used, so the most specific ones come first.
FAMILIES: tuple[Family, ...] = (
    EVA02_DET,
    VITDET,
    OWN,
    *OFFICIAL_FAMILIES,
    AUGREG,
    UNI_PERCEIVER,
    BEIT,
    DINOV3,
    EVA02,
    MAE,
    DINOV2,
    TIMM_VIT,
)


# Parts of models whose names precede those of the plain ViT inside them.
_WRAPPERS = {
    *("backbone", "encoder", "model", "module", "vit", "trunk", "student", "teacher"),
    *("visual", "visual_encoder", "vision_model", "vision_tower", "image_encoder", "img_backbone"),
}
_MOST_WRAPPERS = 4
_OUTSIDE = "not part of the plain ViT"


def _list_families() -> str:
    return "; ".join(f"{family.name} ({family.description})" for family in FAMILIES)


def _prefixes(state_dict: Mapping[str, Tensor]) -> list[str]:
    """What may precede the names of a plain ViT, the most likely prefix first.

    The teacher of a self-distilled model is preferred to its student.
    """
    prefixes = {""}
    for name in state_dict:
        parts = name.split(".", _MOST_WRAPPERS)[:_MOST_WRAPPERS]
        for count, part in enumerate(parts, start=1):
            if part not in _WRAPPERS:
                break
            prefixes.add(".".join(parts[:count]) + ".")
    return sorted(prefixes, key=lambda prefix: ("student" in prefix, prefix.count("."), prefix))


def _convert_below(prefix: str, convert: Converter) -> Converter:
    """A converter for files in which a prefix precedes the names of the family."""

    def convert_under(state_dict: Mapping[str, Tensor]) -> Conversion:
        inner = entries_below(state_dict, prefix)
        conversion = convert(inner)
        renamed = {name: name for name in inner if name in conversion.tensors} | conversion.renamed
        dropped = {prefix + name: why for name, why in conversion.dropped.items()}
        return replace(
            conversion,
            renamed={prefix + old: new for old, new in renamed.items()},
            dropped={n: _OUTSIDE for n in state_dict if not n.startswith(prefix)} | dropped,
        )

    return convert_under


def recognise(state_dict: Mapping[str, Tensor], families: Sequence[Family] = FAMILIES) -> Family:
    """Recognises the family of a state dict by its names.

    The plain ViT may be part of another model: names may have a prefix made of `_WRAPPERS`, such as
    `backbone.` or `model.visual.`.

    Args:
        state_dict: as read from a file.
        families: the possible ones. If there is only one, it is returned in any case.

    Returns:
        The family, with converters that take the whole state dict.

    Raises:
        ValueError: no family recognises it; the message lists all.
    """
    for prefix in _prefixes(state_dict):
        inner = entries_below(state_dict, prefix)
        for family in families:
            if family.recognises(inner) and prefix:
                convert, *others = (_convert_below(prefix, c) for c in family.converters)
                return replace(family, convert=convert, alternatives=others)
            if family.recognises(inner):
                return family
    if len(families) == 1:
        return families[0]  # its converter says what is missing
    raise ValueError(
        f"its names belong to no known family: it has {len(state_dict)} entries such as "
        f"{sorted(state_dict)[:3]}. Known: {_list_families()}"
    )


def find_family(name: str) -> Family:
    """The family called `name`.

    Raises:
        ValueError: there is none; the message lists all.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ValueError(f"there is no family {name!r}. Known: {_list_families()}")
