"""Arranges pictures with captions on white sheets.

All pictures are (H, W, 3) uint8 in RGB.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from vitadapter.visualization.overlays import shortened, write_line
from vitadapter.visualization.style import CAPTION_SIZE

__all__ = ["Panel", "arrange"]

_CAPTION_HEIGHT = 24
_GAP, _GROUP_GAP = 6, 20  # between the panels of a group, and between groups


@dataclass(frozen=True)
class Panel:
    """A picture (H, W, 3) and the caption above it, which is cut if it is wider."""

    image: np.ndarray
    caption: str


def _row(groups: Sequence[Sequence[Panel]], widths: Sequence[int], sheet_width: int) -> Image.Image:
    """Groups side by side; `widths` are those of the places of a group."""
    height = max(panel.image.shape[0] for group in groups for panel in group)
    row = Image.new("RGB", (sheet_width, _CAPTION_HEIGHT + height + _GAP), "white")
    draw = ImageDraw.Draw(row)
    left = _GAP
    for group in groups:
        for place, width in enumerate(widths):
            if place < len(group):
                panel = group[place]
                text = shortened(panel.caption, width, CAPTION_SIZE)
                write_line(draw, (left, _CAPTION_HEIGHT // 2), text, CAPTION_SIZE)
                row.paste(Image.fromarray(panel.image), (left, _CAPTION_HEIGHT))
            left += width + _GAP
        left += _GROUP_GAP - _GAP
    return row


def arrange(groups: Sequence[Sequence[Panel]], columns: int = 1) -> np.ndarray:
    """Draws groups of panels in rows, the panels of a group side by side.

    Args:
        groups: at least one, of at least one panel each.
        columns: groups in a row.

    Returns:
        (H, W, 3)
    """
    places = range(max(map(len, groups)))
    widths = [max(g[i].image.shape[1] for g in groups if i < len(g)) for i in places]
    group_width = sum(widths) + _GAP * (len(widths) - 1)
    in_row = min(columns, len(groups))
    sheet_width = in_row * (group_width + _GROUP_GAP) - _GROUP_GAP + 2 * _GAP
    rows = [groups[at : at + columns] for at in range(0, len(groups), columns)]
    return np.concatenate([np.asarray(_row(row, widths, sheet_width)) for row in rows])
