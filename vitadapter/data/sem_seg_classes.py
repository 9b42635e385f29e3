"""Class names of the data sets of the paper, in the order of their labels."""

from detectron2.data.datasets.builtin_meta import (
    ADE20K_SEM_SEG_CATEGORIES,
    CITYSCAPES_CATEGORIES,
    COCO_CATEGORIES,
)

__all__ = [
    "ADE20K",
    "CHASE_DB1",
    "CITYSCAPES",
    "CITYSCAPES_TRAIN_IDS",
    "COCO_STUFF",
    "COCO_STUFF_IDS",
    "PASCAL_CONTEXT_59",
    "POTSDAM",
]

_STUFF = """
banner blanket branch bridge building-other bush cabinet cage cardboard carpet ceiling-other
ceiling-tile cloth clothes clouds counter cupboard curtain desk-stuff dirt door-stuff fence
floor-marble floor-other floor-stone floor-tile floor-wood flower fog food-other fruit
furniture-other grass gravel ground-other hill house leaves light mat metal mirror-stuff moss
mountain mud napkin net paper pavement pillow plant-other plastic platform playingfield railing
railroad river road rock roof rug salad sand sea shelf sky-other skyscraper snow solid-other stairs
stone straw structural-other table tent textile-other towel tree vegetable wall-brick wall-concrete
wall-other wall-panel wall-stone wall-tile wall-wood water-other waterdrops window-blind
window-other wood
"""
_PASCAL = """
aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat
ceiling chair cloth computer cow cup curtain dog door fence floor flower food grass ground horse
keyboard light motorbike mountain mouse person plate platform pottedplant road rock sheep shelves
sidewalk sign sky snow sofa table track train tree truck tvmonitor wall water window wood
"""
_THINGS = [category for category in COCO_CATEGORIES if category["isthing"]]

ADE20K: tuple[str, ...] = tuple(name.strip() for name in ADE20K_SEM_SEG_CATEGORIES)
CITYSCAPES: tuple[str, ...] = tuple(category["name"] for category in CITYSCAPES_CATEGORIES)
CITYSCAPES_TRAIN_IDS: dict[int, int] = {c["id"]: c["trainId"] for c in CITYSCAPES_CATEGORIES}
"""Class of each label id that is evaluated."""

COCO_STUFF: tuple[str, ...] = (*(category["name"] for category in _THINGS), *_STUFF.split())
COCO_STUFF_IDS: tuple[int, ...] = (*(category["id"] for category in _THINGS), *range(92, 183))
"""COCO's category id of each class: 80 of the things' 1 .. 90, and stuff."""

PASCAL_CONTEXT_59: tuple[str, ...] = tuple(_PASCAL.split())
POTSDAM: tuple[str, ...] = (
    "impervious_surface",
    "building",
    "low_vegetation",
    "tree",
    "car",
    "clutter",
)
CHASE_DB1: tuple[str, ...] = ("background", "vessel")
