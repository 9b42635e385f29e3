"""Which recipe of the official release an experiment of projects/ViTAdapter follows."""

import re
from pathlib import Path

_SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
_DETECTOR = re.compile(
    r"(?P<detector>[a-z_]+?)_(?P<net>vit_adapter|vit)_(?P<size>[tsbl])_(?P<pretrain>[a-z0-9]+)_"
    r"(?P<schedule>3x|1x|o365|lsj_\d+ep)(?P<variant>_\w+)?"
)


def recipe_name(path: Path) -> str | None:
    """The name that a recipe with this file's detector, net, weights and schedule has.

    There need not be one. None for files whose names are not made so.
    """
    found = _DETECTOR.fullmatch(path.stem)
    if path.parent.name != "COCO" or found is None:
        return None
    detector = {"htcpp": "htc++"}.get(found["detector"], found["detector"])
    net = "_adapter" if found["net"] == "vit_adapter" else ""
    variant = found["variant"] or ""
    words = f"{detector}_{found['pretrain']}{net}_{_SIZES[found['size']]}"
    schedule = found["schedule"]
    if variant == "_nofpn":
        return f"{words}_{schedule}_coco"
    if schedule.startswith("lsj_"):
        return f"{words}_lsj_fpn_{schedule.removeprefix('lsj_')}_coco"
    return f"{words}_fpn_{schedule}_coco{variant}"
