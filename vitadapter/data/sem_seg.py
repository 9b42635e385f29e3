"""Semantic segmentation data sets as a config names them: found, checked and loaded at the start.

A data set is one of `sem_seg_layouts.LAYOUTS`, or a folder of images and a folder of label maps.
What cannot work is refused before a model is built, by a message that names the override to
change, as `vitadapter.data.coco` does.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from vitadapter.data.image_files import read_image
from vitadapter.data.sem_seg_labels import LabelReader, read_class_names
from vitadapter.data.sem_seg_layouts import LAYOUTS, SemSegLayout, find_pairs

__all__ = ["load_sem_seg_dataset", "register_sem_seg", "sem_seg_metadata"]

logger = logging.getLogger(__name__)

Record = dict[str, object]

_ROLES = ("train", "test")
_LABEL_SUFFIX = ".png"
# Images that are compared with their label maps at the start: a wrong setting shows in each.
_NUM_IMAGES_READ = 10
# Label maps that are read at the start: seconds, and enough to see nearly every class that one
# image in a hundred has.
_NUM_LABELS_READ = 200


def _own_data(role: str) -> str:
    return f"dataset.{role}.image_root=... and dataset.{role}.label_root=..."


def _check_folder(path: str, key: str) -> None:
    if not Path(path).is_dir():
        raise ValueError(f"the folder {path} does not exist: set {key}=...")


def _known_layout(name: str, role: str) -> SemSegLayout:
    if name not in LAYOUTS:
        near = get_close_matches(name, LAYOUTS, n=3)
        hint = f"near names: {', '.join(near)}" if near else f"known: {', '.join(LAYOUTS)}"
        raise ValueError(
            f"dataset.{role}.name={name} is not a known data set ({hint}): set another "
            f"dataset.{role}.name, or {_own_data(role)}"
        )
    layout = LAYOUTS[name].located()
    for folder in (layout.image_root, layout.label_root):
        if not Path(folder).is_dir():
            made = f" (its label maps are made by {layout.note})" if layout.note else ""
            raise ValueError(
                f"{folder}, a part of the data set '{name}', does not exist{made}: set the "
                "environment variable DETECTRON2_DATASETS to the folder that holds it, or "
                f"{_own_data(role)}"
            )
    return layout


def _folder_layout(
    image_root: str | None,
    label_root: str | None,
    class_names: Sequence[str],
    reduce_zero_label: bool,
    role: str,
) -> SemSegLayout:
    folders = {"image_root": image_root, "label_root": label_root}
    for key, folder in folders.items():
        if not folder:
            raise ValueError(f"a data set of your own needs both folders: set dataset.{role}.{key}")
        _check_folder(str(Path(folder).expanduser()), f"dataset.{role}.{key}")
    images, labels = (str(Path(str(folder)).expanduser()) for folder in folders.values())
    return SemSegLayout(
        images, labels, class_names, reduce_zero_label, None, label_suffix=_LABEL_SUFFIX
    )


def _class_names(class_names: str | None, num_classes: int) -> Sequence[str]:
    if class_names is None:
        return [str(label) for label in range(num_classes)]
    names = read_class_names(class_names)
    if len(names) != num_classes:
        raise ValueError(
            f"{class_names} names {len(names)} classes but the model predicts {num_classes}: "
            f"set dataset.num_classes={len(names)}"
        )
    return names


def _check_known(name: str, layout: SemSegLayout, num_classes: int, reduce_zero: bool) -> None:
    if len(layout.class_names) != num_classes:
        found = len(layout.class_names)
        raise ValueError(
            f"the data set '{name}' has {found} classes but the model predicts {num_classes}: "
            f"set dataset.num_classes={found}"
        )
    if layout.reduce_zero_label != reduce_zero:
        raise ValueError(
            f"label maps of '{name}' {'hold' if not reduce_zero else 'do not hold'} class + 1: "
            f"set dataset.reduce_zero_label={layout.reduce_zero_label}"
        )


def _catalog_name(layout: SemSegLayout, name: str, ignore_label: int, role: str) -> str:
    identity = [str(Path(root).resolve()) for root in (layout.image_root, layout.label_root)]
    identity += [*layout.class_names, str(layout.reduce_zero_label), str(ignore_label), role]
    return f"{name}_{hashlib.sha1('|'.join(identity).encode()).hexdigest()[:10]}"


def _records(layout: SemSegLayout, name: str, role: str) -> list[Record]:
    pairs, unlabelled, without_image = find_pairs(layout)
    if not pairs:
        raise ValueError(
            f"'{name}' has no image in {layout.image_root} with a label map "
            f"NAME{layout.label_suffix} in {layout.label_root}: set {_own_data(role)}"
        )
    if unlabelled and role == "test":
        raise ValueError(
            f"{len(unlabelled)} test images of '{name}' have no label map in {layout.label_root} "
            f"({', '.join(unlabelled[:3])}): set {_own_data(role)}"
        )
    if unlabelled:
        logger.warning(
            "%d images of '%s' have no label map in %s and are left out (%s)",
            len(unlabelled),
            name,
            layout.label_root,
            ", ".join(unlabelled[:3]),
        )
    if without_image:
        logger.warning(
            "%d label maps of '%s' have no image in %s (%s)",
            len(without_image),
            name,
            layout.image_root,
            ", ".join(without_image[:3]),
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
    """Name under which Detectron2's catalogs hold the data set; may be called again at no cost.

    Args:
        name: one of `sem_seg_layouts.LAYOUTS`; only a label when folders are given.
        image_root: folder with images, at any depth.
        label_root: folder with a png of the same name for each image; see `LabelReader`.
        num_classes: number of classes that the model predicts.
        class_names: text file with one class per line, for a data set given by folders alone; None
            names them by number.
        ignore_label: see `LabelReader`.
        reduce_zero_label: see `LabelReader`.
        role: "train" or "test": which override an error names.

    Raises:
        ValueError: unknown name, missing folder, or another number of classes.
    """
    if role not in _ROLES:
        raise ValueError(f"role must be one of {_ROLES}, got {role!r}")
    LabelReader(num_classes, ignore_label, reduce_zero_label)  # refuses what contradicts itself
    if image_root is None and label_root is None:
        if class_names is not None:
            raise ValueError(
                f"dataset.class_names={class_names} is for a data set of your own, given by "
                f"{_own_data(role)}: '{name}' has its names"
            )
        layout = _known_layout(name, role)
        _check_known(name, layout, num_classes, reduce_zero_label)
    else:
        names = _class_names(class_names, num_classes)
        layout = _folder_layout(image_root, label_root, names, reduce_zero_label, role)
    registered = _catalog_name(layout, name, ignore_label, role)
    if registered not in DatasetCatalog:
        DatasetCatalog.register(registered, lambda: _records(layout, name, role))
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
    """Metadata with `stuff_classes` as far as they can be known without images.

    Args:
        name, class_names, num_classes: as in :func:`register_sem_seg`; no file has to exist.
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


def _listed(values: Iterable[object]) -> str:
    values = [str(value) for value in values]
    return ", ".join(values[:10]) + (", ..." if len(values) > 10 else "")


def _spread(records: Sequence[Record], count: int) -> list[Record]:
    """At most so many, evenly spread."""
    chosen = np.linspace(0, len(records) - 1, min(count, len(records))).astype(int)
    return [records[i] for i in chosen]


def _check_images(records: Sequence[Record], read_label: LabelReader, name: str, role: str) -> None:
    errors = []
    chosen = _spread(records, _NUM_IMAGES_READ)
    for record in chosen:
        label = read_label(str(record["sem_seg_file_name"]))
        try:
            image = read_image(str(record["file_name"]), "RGB")
        except ValueError as error:
            errors.append(str(error))
            continue
        if image.shape[:2] != label.shape:
            raise ValueError(
                f"the label map {record['sem_seg_file_name']} has (height, width) {label.shape}, "
                f"its image {image.shape[:2]}: set dataset.{role}.label_root=..."
            )
    if len(errors) == len(chosen):
        raise ValueError(
            f"no image of '{name}' that was tried can be read ({errors[0]}): "
            f"set dataset.{role}.image_root=..."
        )


def _check_labels(
    records: Sequence[Record],
    read_label: LabelReader,
    class_names: Sequence[str],
    name: str,
    role: str,
) -> None:
    """Reads label maps, and says which of them are unusable and which classes none of them has."""
    chosen = _spread(records, _NUM_LABELS_READ)
    counts = np.zeros(len(class_names), dtype=np.int64)
    num_ignored, faults = 0, []
    for record in chosen:
        try:
            labels = read_label(str(record["sem_seg_file_name"]))
        except ValueError as error:
            if role == "test":  # where none is skipped
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
            _listed([f"{label + first} ({class_names[label]})" for label in sorted(absent)]),
            _listed([ignored] * bool(num_ignored) + list(np.flatnonzero(counts) + first)),
        )


def _warn_of_labels(name: str, num_classes: int, ignore_label: int, own_shifted: bool) -> None:
    """Says what the settings make of label maps where that may surprise."""
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
) -> list[Record]:
    """Loads and checks a data set of images and label maps, known by name or given by folders.

    Args:
        name, image_root, label_root, num_classes, class_names, ignore_label, reduce_zero_label,
            role: as in :func:`register_sem_seg`.

    Returns:
        list[dict]: "file_name" and "sem_seg_file_name" of each image with a label map.

    Raises:
        ValueError: the data cannot be used; the message names the override to change.
    """
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
    _check_images(records, reader, name, role)
    _check_labels(records, reader, MetadataCatalog.get(registered).stuff_classes, name, role)
    logger.info("%d images of '%s' for %s", len(records), name, role)
    _warn_of_labels(name, num_classes, ignore_label, reduce_zero_label and label_root is not None)
    return records
