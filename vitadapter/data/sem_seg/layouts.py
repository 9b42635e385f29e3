"""Semantic segmentation data sets of the paper: classes, and pairs of images and label maps.

Their folders are those of the official release, below the folder that the environment variable
`DETECTRON2_DATASETS` names ("datasets" if it is not set).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unicodedata import normalize

from detectron2.data.datasets.builtin_meta import (
    ADE20K_SEM_SEG_CATEGORIES,
    CITYSCAPES_CATEGORIES,
    COCO_CATEGORIES,
)

from vitadapter.data.image_files import files_by_name

__all__ = [
    "CITYSCAPES_TRAIN_IDS",
    "COCO_STUFF",
    "COCO_STUFF_IDS",
    "LAYOUTS",
    "PASCAL_CONTEXT_59",
    "SemSegLayout",
    "find_pairs",
]

# Names are in the order of the labels.
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

_CITYSCAPES = tuple(category["name"] for category in CITYSCAPES_CATEGORIES)
CITYSCAPES_TRAIN_IDS: dict[int, int] = {c["id"]: c["trainId"] for c in CITYSCAPES_CATEGORIES}
"""The class of each label id that is evaluated."""

COCO_STUFF: tuple[str, ...] = (*(category["name"] for category in _THINGS), *_STUFF.split())
COCO_STUFF_IDS: tuple[int, ...] = (*(category["id"] for category in _THINGS), *range(92, 183))
"""COCO's category id of each class: 80 things with ids in 1 .. 90, then stuff."""

PASCAL_CONTEXT_59: tuple[str, ...] = tuple(_PASCAL.split())

_TRAIN_IDS = "_labelTrainIds.png"


@dataclass(frozen=True)
class SemSegLayout:
    """Files and labels of one split of a data set.

    Args:
        image_root: folder of the images.
        label_root: folder of the label maps, with the same tree.
        class_names: in the order of the labels.
        reduce_zero_label: see `LabelReader`.
        image_suffix: end of an image's name, after the part that the label map shares; None for
            any image.
        label_suffix: end of a label map's name, after the part that the image shares.
        split_file: text file with the shared part of each name in the split; None takes all.
        note: the script that makes the label maps, if they are not downloaded.
    """

    image_root: str
    label_root: str
    class_names: Sequence[str]
    reduce_zero_label: bool
    image_suffix: str | None = ".jpg"
    label_suffix: str = ".png"
    split_file: str | None = None
    note: str = ""

    def located(self) -> "SemSegLayout":
        """The same layout with paths below the folder of data sets."""
        root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
        return replace(
            self,
            image_root=str(root / self.image_root),
            label_root=str(root / self.label_root),
            split_file=None if self.split_file is None else str(root / self.split_file),
        )


def _splits(
    root: str,
    class_names: Sequence[str],
    splits: dict[str, tuple[str, str]],
    *,
    reduce_zero_label: bool = False,
    image_suffix: str = ".jpg",
    label_suffix: str = ".png",
    note: str = "",
) -> dict[str, SemSegLayout]:
    """A layout for each split. Their folders (images, label maps) are below one root."""
    return {
        split: SemSegLayout(
            f"{root}/{images}",
            f"{root}/{labels}",
            class_names,
            reduce_zero_label,
            image_suffix,
            label_suffix,
            note=note,
        )
        for split, (images, labels) in splits.items()
    }


def _pascal_context(split: str) -> SemSegLayout:
    root = "VOCdevkit/VOC2010"
    return SemSegLayout(
        f"{root}/JPEGImages",
        f"{root}/SegmentationClassContext",
        PASCAL_CONTEXT_59,
        reduce_zero_label=True,
        split_file=f"{root}/ImageSets/SegmentationContext/{split}.txt",
        note="scripts/prepare_pascal_context.py",
    )


LAYOUTS: dict[str, SemSegLayout] = {
    "pascal_context_59_train": _pascal_context("train"),
    "pascal_context_59_val": _pascal_context("val"),
    **_splits(
        "ADEChallengeData2016",
        tuple(name.strip() for name in ADE20K_SEM_SEG_CATEGORIES),
        {
            "ade20k_150_train": ("images/training", "annotations/training"),
            "ade20k_150_val": ("images/validation", "annotations/validation"),
        },
        reduce_zero_label=True,
    ),
    **_splits(
        "coco_stuff164k",
        COCO_STUFF,
        {
            "coco_stuff_164k_train": ("images/train2017", "annotations/train2017"),
            "coco_stuff_164k_val": ("images/val2017", "annotations/val2017"),
        },
        label_suffix=_TRAIN_IDS,
        note="scripts/prepare_coco_stuff.py",
    ),
    **_splits(
        "coco_stuff10k",
        COCO_STUFF,
        {
            "coco_stuff_10k_train": ("images/train2014", "annotations/train2014"),
            "coco_stuff_10k_test": ("images/test2014", "annotations/test2014"),
        },
        reduce_zero_label=True,
        label_suffix=_TRAIN_IDS,
        note="scripts/prepare_coco_stuff.py --version 10k",
    ),
    # Detectron2's own cityscapes_fine_sem_seg_* have a different evaluator.
    **_splits(
        "cityscapes",
        _CITYSCAPES,
        {
            "cityscapes_19_train": ("leftImg8bit/train", "gtFine/train"),
            "cityscapes_19_val": ("leftImg8bit/val", "gtFine/val"),
        },
        image_suffix="_leftImg8bit.png",
        label_suffix=f"_gtFine{_TRAIN_IDS}",
        note="scripts/prepare_cityscapes.py",
    ),
    # Mapillary Vistas with the classes of Cityscapes.
    **_splits(
        "Mapillary",
        _CITYSCAPES,
        {
            "mapillary_19_train": ("training/images", "training/train_ids"),
            "mapillary_19_trainval": ("trainval/images", "trainval/train_ids"),
            "mapillary_19_val": ("validation/images", "validation/train_ids"),
        },
        note="scripts/prepare_mapillary.py",
    ),
    **_splits(
        "potsdam",
        ("impervious_surface", "building", "low_vegetation", "tree", "car", "clutter"),
        {
            "potsdam_6_train": ("img_dir/train", "ann_dir/train"),
            "potsdam_6_val": ("img_dir/val", "ann_dir/val"),
        },
        reduce_zero_label=True,
        image_suffix=".png",
        note="scripts/prepare_potsdam.py",
    ),
    **_splits(
        "CHASE_DB1",
        ("background", "vessel"),
        {
            "chase_db1_train": ("images/training", "annotations/training"),
            "chase_db1_val": ("images/validation", "annotations/validation"),
        },
        image_suffix=".png",
        label_suffix="_1stHO.png",
        note="scripts/prepare_chase_db1.py",
    ),
}


def find_pairs(layout: SemSegLayout) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """Finds images and their label maps.

    Args:
        layout: with folders that exist.

    Returns:
        Pairs (image, label map) in the order of their names, the images without a label map, and
        the label maps without an image (none if a file lists the split).

    Raises:
        ValueError: two images have the same name, the file that lists the split does not exist, or
            it lists images that do not exist.
    """
    images = files_by_name(Path(layout.image_root), layout.image_suffix)
    labels = files_by_name(Path(layout.label_root), layout.label_suffix)
    if layout.split_file is not None:
        path = Path(layout.split_file)
        if not path.is_file():
            raise ValueError(f"{path}, which lists the images of the split, does not exist")
        listed = normalize("NFC", path.read_text(encoding="utf-8-sig")).split()
        absent = [name for name in listed if name not in images]
        if absent:
            raise ValueError(f"{path} lists {absent[0]}, which {layout.image_root} does not have")
        images = {name: images[name] for name in listed}
        labels = {name: path for name, path in labels.items() if name in images}
    names = sorted(images)
    pairs = [(images[name], labels[name]) for name in names if name in labels]
    unlabelled = [images[name] for name in names if name not in labels]
    return pairs, unlabelled, [labels[name] for name in sorted(labels) if name not in images]
