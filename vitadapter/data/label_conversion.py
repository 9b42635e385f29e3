"""Label maps of data sets as they are downloaded, to those that are trained on.

Each function takes and gives arrays; `scripts/prepare_*.py` read and write the files.
"""

from collections.abc import Mapping

import numpy as np

from vitadapter.data.sem_seg_classes import CITYSCAPES_TRAIN_IDS, COCO_STUFF_IDS

__all__ = [
    "chase_db1_labels",
    "cityscapes_labels",
    "coco_stuff_10k_labels",
    "coco_stuff_labels",
    "mapillary_labels",
    "pascal_context_labels",
    "potsdam_labels",
]

_IGNORED = 255

# Of the 459 labels of Pascal Context, in the order of the 59 classes.
_PASCAL_CONTEXT_IDS = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98),
    *(104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260),
    *(284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416),
    *(420, 424, 427, 440, 445, 454, 458),
)
# Of Mapillary Vistas 1.2's labels those that are each of Cityscapes' 19 classes.
_MAPILLARY_IDS = (
    *((13, 24, 41), (2, 15), (17,), (6,), (3,), (45, 47), (48,), (50,), (30,), (29,), (27,)),
    *((19,), (20, 21, 22), (55,), (61,), (54,), (58,), (57,), (52,)),
)
# RGB of 0 (border) and of the classes + 1.
_POTSDAM_COLORS = (
    (0, 0, 0),
    (255, 255, 255),
    (0, 0, 255),
    (0, 255, 255),
    (0, 255, 0),
    (255, 255, 0),
    (255, 0, 0),
)
# Tile 4_12 was published after a lossy compression, and most cars of tile 6_7 are (252, 255, 0).
_POTSDAM_TOLERANCE = 80


def _apply(labels: np.ndarray, table: np.ndarray, what: str) -> np.ndarray:
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{what} must be one integer per pixel, got {labels.shape} {labels.dtype}")
    if labels.size and not 0 <= labels.min() <= labels.max() < len(table):
        raise ValueError(
            f"{what} must lie in 0 .. {len(table) - 1}, got {labels.min()} .. {labels.max()}"
        )
    return table[labels]


def _table(size: int, default: int, classes: Mapping[int, int]) -> np.ndarray:
    table = np.full(size, default, dtype=np.uint8)
    for label, train_id in classes.items():
        table[label] = train_id
    return table


def cityscapes_labels(label_ids: np.ndarray) -> np.ndarray:
    """`*_labelIds.png` `(H, W)` to the 19 classes that are evaluated, 255 elsewhere."""
    return _apply(label_ids, _table(256, _IGNORED, CITYSCAPES_TRAIN_IDS), "label ids")


def mapillary_labels(label_ids: np.ndarray) -> np.ndarray:
    """Mapillary Vistas' labels `(H, W)` to Cityscapes' 19 classes, 255 elsewhere."""
    classes = {label: i for i, labels in enumerate(_MAPILLARY_IDS) for label in labels}
    return _apply(label_ids, _table(256, _IGNORED, classes), "label ids")


def coco_stuff_labels(category_ids: np.ndarray) -> np.ndarray:
    """COCO-Stuff 164k's category ids - 1 `(H, W)` to 171 classes, 255 elsewhere."""
    classes = {category - 1: label for label, category in enumerate(COCO_STUFF_IDS)}
    return _apply(category_ids, _table(256, _IGNORED, classes), "category ids")


def coco_stuff_10k_labels(category_ids: np.ndarray) -> np.ndarray:
    """COCO-Stuff 10k's category ids `(H, W)` to 171 classes + 1, 0 where there is none."""
    classes = {category: label + 1 for label, category in enumerate(COCO_STUFF_IDS)}
    return _apply(category_ids, _table(256, 0, classes), "category ids")


def pascal_context_labels(label_ids: np.ndarray) -> np.ndarray:
    """Pascal Context's 459 labels `(H, W)` to 59 classes + 1, 0 elsewhere."""
    classes = {label: i + 1 for i, label in enumerate(_PASCAL_CONTEXT_IDS)}
    return _apply(label_ids, _table(460, 0, classes), "label ids")


def potsdam_labels(colors: np.ndarray) -> np.ndarray:
    """Potsdam's label image `(H, W, 3)` RGB to 6 classes + 1, 0 for the black border.

    Channels that are a little off count as 0 or 255, unlike in the official release, which ignores
    the pixels of any other colour: two published tiles have many.

    Raises:
        ValueError: a colour that stands for no class.
    """
    if colors.ndim != 3 or colors.shape[2] != 3 or colors.dtype != np.uint8:
        raise ValueError(
            f"label images must be RGB of 8 bit (H, W, 3), got {colors.shape} {colors.dtype}"
        )
    bright = colors > 127
    distance = np.where(bright, 255 - colors, colors).max(axis=2)  # (H, W)
    corners = bright @ np.array([4, 2, 1], dtype=np.uint8)  # (H, W), of the colour cube
    table = np.full(8, _IGNORED, dtype=np.uint8)
    for label, color in enumerate(_POTSDAM_COLORS):
        table[(np.array(color) > 127) @ np.array([4, 2, 1])] = label
    labels = np.where(distance > _POTSDAM_TOLERANCE, np.uint8(_IGNORED), table[corners])
    unknown = colors[labels == _IGNORED]
    if len(unknown):
        raise ValueError(
            f"colours must be one of {_POTSDAM_COLORS}, got {tuple(unknown[0].tolist())} "
            f"({len(unknown)} pixels)"
        )
    return labels


def chase_db1_labels(grey: np.ndarray) -> np.ndarray:
    """CHASE-DB1's `*_1stHO.png` `(H, W)` of 0 and 255, or 0 and 1, to 0 and 1."""
    if grey.ndim != 2:
        raise ValueError(f"label maps must be grey (H, W), got {grey.shape}")
    return (grey > (0 if grey.max(initial=0) <= 1 else 127)).astype(np.uint8)
