"""Finds, checks and loads semantic segmentation data sets that a config names.

A data set is one of `layouts.LAYOUTS`, or a folder of images and a folder of label maps.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from vitadapter.data.dataset_source import (
    DatasetSource,
    Record,
    catalog_name,
    check_num_classes,
    counted,
    first_few,
    refuse_root,
    spread,
)
from vitadapter.data.sem_seg.labels import LabelReader, read_class_names
from vitadapter.data.sem_seg.layouts import LAYOUTS, SemSegLayout, find_pairs

__all__ = ["load_sem_seg_dataset", "register_sem_seg", "sem_seg_metadata"]

logger = logging.getLogger(__name__)

_FOLDERS = ("image_root", "label_root")
# Number of label maps that are read at the start. This takes seconds, and finds nearly every class
# that occurs in one image of a hundred.
_NUM_LABELS_READ = 200


def _known_layout(
    name: str, source: DatasetSource, num_classes: int, reduce_zero_label: bool
) -> SemSegLayout:
    source.check_name(name, LAYOUTS)
    layout = LAYOUTS[name].located()
    made = f" (its label maps are made by {layout.note})" if layout.note else ""
    source.check_parts(name, (layout.image_root, layout.label_root), made)
    check_num_classes(f"the data set '{name}' has", len(layout.class_names), num_classes)
    if layout.reduce_zero_label != reduce_zero_label:
        raise ValueError(
            f"label maps of '{name}' {'hold' if not reduce_zero_label else 'do not hold'} class + "
            f"1: set dataset.reduce_zero_label={layout.reduce_zero_label}"
        )
    return layout


def _class_names(class_names: str | None, num_classes: int) -> Sequence[str]:
    if class_names is None:
        return [str(label) for label in range(num_classes)]
    names = read_class_names(class_names)
    check_num_classes(f"{class_names} names", len(names), num_classes)
    return names


def _records(layout: SemSegLayout, name: str, source: DatasetSource) -> list[Record]:
    pairs, unlabelled, without_image = find_pairs(layout)
    if not pairs:
        raise ValueError(
            f"'{name}' has no image in {layout.image_root} with a label map "
            f"NAME{layout.label_suffix} in {layout.label_root}: set {source.own_data}"
        )
    if unlabelled and source.role == "test":
        raise ValueError(
            f"{counted(len(unlabelled), 'test image')} of '{name}' without a label map in "
            f"{layout.label_root} ({first_few(unlabelled)}): set {source.own_data}"
        )
    if unlabelled:
        logger.warning(
            "%s of '%s' without a label map in %s, left out (%s)",
            counted(len(unlabelled), "image"),
            name,
            layout.label_root,
            first_few(unlabelled),
        )
    if without_image:
        logger.warning(
            "%s of '%s' without an image in %s (%s)",
            counted(len(without_image), "label map"),
            name,
            layout.image_root,
            first_few(without_image),
        )
    return [{"file_name": image, "sem_seg_file_name": label} for image, label in pairs]


def register_sem_seg(
    name: str,
    image_root: str | None = None,
    label_root: str | None = None,
    *,
    num_classes: int,
    class_names: str | None = None,
    ignore_label: int = 255,
    reduce_zero_label: bool = False,
    role: str = "train",
) -> str:
    """Registers a data set, unless it is registered, and returns its name in Detectron2's catalogs.

    Args:
        name: one of `layouts.LAYOUTS`; only a label if folders are given.
        image_root: folder with images, at any depth.
        label_root: folder with a png of the same name for each image; see `LabelReader`.
        num_classes: number of classes that the model predicts.
        class_names: text file with one class per line, only for a data set given by folders; None
            uses numbers as names.
        ignore_label: see `LabelReader`.
        reduce_zero_label: see `LabelReader`.
        role: "train" or "test": which override an error names.

    Raises:
        ValueError: the name is unknown, a folder is missing, or the number of classes is wrong.
    """
    source = DatasetSource(role, _FOLDERS)
    LabelReader(num_classes, ignore_label, reduce_zero_label)  # refuses contradictory settings
    if image_root is None and label_root is None:
        if class_names is not None:
            raise ValueError(
                f"dataset.class_names={class_names} is for a data set of your own, given by "
                f"{source.own_data}: '{name}' has its names"
            )
        layout = _known_layout(name, source, num_classes, reduce_zero_label)
    else:
        image_root, label_root = source.own_files(image_root, label_root)
        names = _class_names(class_names, num_classes)
        layout = SemSegLayout(image_root, label_root, names, reduce_zero_label, image_suffix=None)
    settings = (*layout.class_names, reduce_zero_label, ignore_label, role)
    registered = catalog_name(name, (layout.image_root, layout.label_root), *settings)
    if registered not in DatasetCatalog:
        DatasetCatalog.register(registered, lambda: _records(layout, name, source))
        MetadataCatalog.get(registered).set(
            stuff_classes=list(layout.class_names),
            ignore_label=ignore_label,
            reduce_zero_label=reduce_zero_label,
            evaluator_type="sem_seg",
            image_root=layout.image_root,
            sem_seg_root=layout.label_root,
        )
    return registered


def sem_seg_metadata(name: str, class_names: str | None, num_classes: int) -> Metadata:
    """Metadata with `stuff_classes`, which are numbers if the names are not known.

    Args:
        name, class_names, num_classes: as in `register_sem_seg`; no file has to exist.
    """
    names: Sequence[str] = [str(label) for label in range(num_classes)]
    if class_names is not None and Path(class_names).expanduser().is_file():
        names = read_class_names(class_names)
    elif name in LAYOUTS:
        names = LAYOUTS[name].class_names
    if len(names) != num_classes:
        logger.warning("no class names: %d are known for %d classes", len(names), num_classes)
        names = [str(label) for label in range(num_classes)]
    return Metadata(name=name, stuff_classes=list(names))


def _check_labels(
    records: Sequence[Record],
    read_label: LabelReader,
    class_names: Sequence[str],
    name: str,
    role: str,
) -> None:
    """Reads label maps and warns of unusable ones, and of classes that occur in none."""
    chosen = spread(records, _NUM_LABELS_READ)
    counts = np.zeros(len(class_names), dtype=np.int64)
    num_ignored, faults = 0, []
    for record in chosen:
        try:
            labels = read_label(str(record["sem_seg_file_name"]))
        except ValueError as error:
            if role == "test":  # no test image is skipped
                raise
            faults.append(str(error))
            continue
        known = labels[labels != read_label.ignore_label]
        num_ignored += labels.size - known.size
        counts += np.bincount(known, minlength=len(counts))
    read = f"the {len(chosen)} label maps of '{name}' (of {len(records)}) read at the start"
    if faults:
        logger.warning("%d of %s cannot be used (%s)", len(faults), read, faults[0])
    absent = set(np.flatnonzero(counts == 0).tolist()) - {read_label.ignore_label}
    if absent:
        first = int(read_label.reduce_zero_label)
        ignored = f"{'0 or ' * first}{read_label.ignore_label} (ignored)"
        logger.warning(
            "%d of %d classes are in none of %s: %s. The maps have the values %s: if one of these "
            "stands for such a class, convert the maps",
            len(absent),
            len(class_names),
            read,
            first_few([f"{label + first} ({class_names[label]})" for label in sorted(absent)], 10),
            first_few([ignored] * bool(num_ignored) + list(np.flatnonzero(counts) + first), 10),
        )


def _warn_of_labels(name: str, num_classes: int, ignore_label: int, own_shifted: bool) -> None:
    """Warns of settings that read label maps in a way that may be unexpected."""
    if 0 <= ignore_label < num_classes:
        logger.warning(
            "dataset.ignore_label=%d is a class of '%s' (dataset.num_classes=%d): its pixels are "
            "neither trained on nor evaluated",
            ignore_label,
            name,
            num_classes,
        )
    if own_shifted:
        logger.warning(
            "label maps of '%s' are read as 0 for no class and 1 .. %d for the classes: if 0 is a "
            "class, set dataset.reduce_zero_label=False",
            name,
            num_classes,
        )


def load_sem_seg_dataset(
    name: str,
    image_root: str | None = None,
    label_root: str | None = None,
    *,
    num_classes: int,
    class_names: str | None = None,
    ignore_label: int = 255,
    reduce_zero_label: bool = False,
    role: str = "train",
    root: str | None = None,
) -> list[Record]:
    """Loads and checks a data set of images and label maps, known by name or given by folders.

    Args:
        name, image_root, label_root: as in `register_sem_seg`.
        num_classes, class_names, ignore_label, reduce_zero_label, role: likewise.
        root: `dataset.root`, which must be None by now; see `refuse_root`.

    Returns:
        A record with "file_name" and "sem_seg_file_name" for each image with a label map.

    Raises:
        ValueError: the data cannot be used; the message names the override to change.
    """
    refuse_root(root)
    registered = register_sem_seg(
        name,
        image_root,
        label_root,
        num_classes=num_classes,
        class_names=class_names,
        ignore_label=ignore_label,
        reduce_zero_label=reduce_zero_label,
        role=role,
    )
    records = DatasetCatalog.get(registered)
    reader = LabelReader(num_classes, ignore_label, reduce_zero_label)
    DatasetSource(role, _FOLDERS).check_images(records, name, reader.of_record)
    _check_labels(records, reader, MetadataCatalog.get(registered).stuff_classes, name, role)
    logger.info("%d images of '%s' for %s", len(records), name, role)
    _warn_of_labels(name, num_classes, ignore_label, reduce_zero_label and label_root is not None)
    return records
