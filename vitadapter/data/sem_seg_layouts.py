"""Where semantic segmentation data sets keep images and label maps, and how these belong together.

Roots are those of the official release, below the folder that the environment variable
``DETECTRON2_DATASETS`` names (``datasets`` without it).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unicodedata import normalize

from vitadapter.data import sem_seg_classes
from vitadapter.data.image_files import files_by_name

__all__ = ["LAYOUTS", "SemSegLayout", "find_pairs"]


@dataclass(frozen=True)
class SemSegLayout:
    """Files and labels of one split of a data set.

    Args:
        image_root: folder of the images.
        label_root: folder of the label maps, with the same tree.
        class_names: in the order of the labels.
        reduce_zero_label: see `LabelReader`.
        image_suffix: what follows the common part of a name; None for any image.
        label_suffix: what follows the common part of a label map's name.
        split_file: text file with the common part of each name of the split; None for all.
        note: what makes the label maps, where they are not as downloaded.
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
        """The same with paths below the folder of data sets."""
        root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
        return replace(
            self,
            image_root=str(root / self.image_root),
            label_root=str(root / self.label_root),
            split_file=None if self.split_file is None else str(root / self.split_file),
        )


def _splits(common: SemSegLayout, **folders: tuple[str, str]) -> dict[str, SemSegLayout]:
    """A layout for each named split, whose (images, label maps) lie below the common roots."""
    return {
        split: replace(
            common,
            image_root=f"{common.image_root}/{images}",
            label_root=f"{common.label_root}/{labels}",
        )
        for split, (images, labels) in folders.items()
    }


def _same_root(
    root: str,
    class_names: Sequence[str],
    *,
    reduce_zero_label: bool,
    image_suffix: str = ".jpg",
    label_suffix: str = ".png",
    note: str = "",
) -> SemSegLayout:
    return SemSegLayout(
        root, root, class_names, reduce_zero_label, image_suffix, label_suffix, note=note
    )


def _pascal_context(split: str) -> SemSegLayout:
    root = "VOCdevkit/VOC2010"
    return SemSegLayout(
        f"{root}/JPEGImages",
        f"{root}/SegmentationClassContext",
        sem_seg_classes.PASCAL_CONTEXT_59,
        reduce_zero_label=True,
        split_file=f"{root}/ImageSets/SegmentationContext/{split}.txt",
        note="scripts/prepare_pascal_context.py",
    )


_TRAIN_IDS = "_labelTrainIds.png"
_ADE20K = _same_root("ADEChallengeData2016", sem_seg_classes.ADE20K, reduce_zero_label=True)
_COCO_STUFF_164K = _same_root(
    "coco_stuff164k",
    sem_seg_classes.COCO_STUFF,
    reduce_zero_label=False,
    label_suffix=_TRAIN_IDS,
    note="scripts/prepare_coco_stuff.py",
)
_COCO_STUFF_10K = _same_root(
    "coco_stuff10k",
    sem_seg_classes.COCO_STUFF,
    reduce_zero_label=True,
    label_suffix=_TRAIN_IDS,
    note="scripts/prepare_coco_stuff.py --version 10k",
)
_CITYSCAPES = _same_root(
    "cityscapes",
    sem_seg_classes.CITYSCAPES,
    reduce_zero_label=False,
    image_suffix="_leftImg8bit.png",
    label_suffix=f"_gtFine{_TRAIN_IDS}",
    note="scripts/prepare_cityscapes.py",
)
# Mapillary Vistas in the classes of Cityscapes.
_MAPILLARY = _same_root(
    "Mapillary",
    sem_seg_classes.CITYSCAPES,
    reduce_zero_label=False,
    note="scripts/prepare_mapillary.py",
)
_POTSDAM = _same_root(
    "potsdam",
    sem_seg_classes.POTSDAM,
    reduce_zero_label=True,
    image_suffix=".png",
    note="scripts/prepare_potsdam.py",
)
_CHASE_DB1 = _same_root(
    "CHASE_DB1",
    sem_seg_classes.CHASE_DB1,
    reduce_zero_label=False,
    image_suffix=".png",
    label_suffix="_1stHO.png",
    note="scripts/prepare_chase_db1.py",
)

LAYOUTS: dict[str, SemSegLayout] = {
    "pascal_context_59_train": _pascal_context("train"),
    "pascal_context_59_val": _pascal_context("val"),
    **_splits(
        _ADE20K,
        ade20k_150_train=("images/training", "annotations/training"),
        ade20k_150_val=("images/validation", "annotations/validation"),
    ),
    **_splits(
        _COCO_STUFF_164K,
        coco_stuff_164k_train=("images/train2017", "annotations/train2017"),
        coco_stuff_164k_val=("images/val2017", "annotations/val2017"),
    ),
    **_splits(
        _COCO_STUFF_10K,
        coco_stuff_10k_train=("images/train2014", "annotations/train2014"),
        coco_stuff_10k_test=("images/test2014", "annotations/test2014"),
    ),
    # Detectron2's own cityscapes_fine_sem_seg_* have another evaluator.
    **_splits(
        _CITYSCAPES,
        cityscapes_19_train=("leftImg8bit/train", "gtFine/train"),
        cityscapes_19_val=("leftImg8bit/val", "gtFine/val"),
    ),
    **_splits(
        _MAPILLARY,
        mapillary_19_train=("training/images", "training/train_ids"),
        mapillary_19_trainval=("trainval/images", "trainval/train_ids"),
        mapillary_19_val=("validation/images", "validation/train_ids"),
    ),
    **_splits(
        _POTSDAM,
        potsdam_6_train=("img_dir/train", "ann_dir/train"),
        potsdam_6_val=("img_dir/val", "ann_dir/val"),
    ),
    **_splits(
        _CHASE_DB1,
        chase_db1_train=("images/training", "annotations/training"),
        chase_db1_val=("images/validation", "annotations/validation"),
    ),
}


def find_pairs(layout: SemSegLayout) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """
    Args:
        layout: with roots that exist.

    Returns:
        (image, label map) in the order of their names, the images without a label map, and the
        label maps without an image (of a split that a file lists, none).

    Raises:
        ValueError: two images of one name, or the file that lists the split does not exist, or
            names images that do not.
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
