"""Folders of images and label maps, in numbers or in colours."""

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from vitadapter.data.dataset_source import counted, first_few
from vitadapter.data.folders.class_tables import ClassTable, find_class_table, packed
from vitadapter.data.folders.found import (
    FoundDataset,
    FoundImage,
    categories,
    check_most,
    fault_of,
    raise_faults,
)
from vitadapter.data.folders.listing import (
    Listing,
    image_facts,
    image_key,
    is_label_folder,
    pair_labels,
    split_of,
)
from vitadapter.data.folders.voc import listed_splits
from vitadapter.data.image_files import open_image, read_numbers

__all__ = ["FoundMaps", "label_map_files", "read_label_maps", "write_label_maps"]

logger = logging.getLogger(__name__)

_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
# Ends of a label map's name, where it lies beside its image or has a folder of its own.
_NAME_ENDS = ("_mask", "_masks", "_labels", "_label", "_l", "_gt", "_seg")
# Maps of instances, which lie beside those of classes.
_OTHER_FOLDERS = {"segmentationobject"}
# Modes of Pillow that have one number per pixel.
_NUMBERS = ("1", "L", "P", "I", "I;16", "I;16B")
# Of which all are read to find the number of classes.
_MAX_MAPS_READ = 5000
_NUM_READERS = 4


@dataclass
class FoundMaps:
    """A folder of label maps.

    Attributes:
        dataset: what was found.
        table: of its classes, if there is one.
        is_plain: whether label maps hold the numbers of classes.
    """

    dataset: FoundDataset
    table: ClassTable | None
    is_plain: bool


def _divided(listing: Listing) -> tuple[list[str], list[str]]:
    """(images, label maps) by the names of folders and files."""
    known = set(map(image_key, listing.images))
    images, labels = [], []
    for file in listing.images:
        parts = [part.lower() for part in file.split("/")[:-1]]
        if _OTHER_FOLDERS & set(parts):
            continue
        own, common = image_key(file), image_key(file, _NAME_ENDS)
        is_label = is_label_folder(file) or (common != own and common in known)
        if is_label and file.lower().endswith(_SUFFIXES):
            labels.append(file)
        else:
            images.append(file)
    return images, labels


def label_map_files(listing: Listing) -> list[str]:
    """Files that show that the folder is in this format."""
    return _divided(listing)[1][:1]


def _read(listing: Listing, file: str, coloured: bool) -> np.ndarray:
    """Numbers (H, W) of a file: its own, or packed colours; grey in three channels is no colour."""
    if coloured:
        with open_image(listing.path(file)) as image:
            if image.mode not in ("P", "RGB", "RGBA"):
                raise ValueError("it has no colours, as the table of the folder asks")
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), np.int64), -1, 0)
        return packed(red, green, blue)
    values = read_numbers(listing.path(file))
    if values.dtype.kind not in "biu":
        raise ValueError(f"has numbers of the type {values.dtype}")
    if values.ndim == 2:
        return values.astype(np.int64)
    if values.shape[2] >= 3 and (values[..., :1] != values[..., :3]).any():
        raise ValueError(
            "has colours, but the folder has no table of them: add class_dict.csv with the lines "
            "name,red,green,blue"
        )
    return values[..., 0].astype(np.int64)


def _largest_label(listing: Listing, labels: Sequence[str], ignore_label: int) -> int:
    """The largest class in the label maps, which are read for it."""
    if len(labels) > _MAX_MAPS_READ:
        raise ValueError(
            f"{len(labels)} label maps, but no table of their classes: add classes.txt with one "
            "class name per line"
        )
    faults: list[str] = []

    def values_of(file: str) -> np.ndarray:
        try:
            return np.unique(_read(listing, file, False))
        except ValueError as error:
            faults.append(fault_of(listing, file, error))
            return np.empty(0, np.int64)

    logger.info("reading %d label maps to find their classes", len(labels))
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        found = np.unique(np.concatenate(list(readers.map(values_of, labels))))
    raise_faults("label map", sorted(faults))
    if found.tolist() == [0, 255] and ignore_label == 255:
        raise ValueError(
            "the label maps have the values 0 and 255 alone, and dataset.ignore_label=255: add "
            "classes.csv with the lines 0,NAME and 255,NAME if they are two classes"
        )
    classes = found[found != ignore_label]
    if not classes.size:
        raise ValueError(f"the label maps have no class, only dataset.ignore_label={ignore_label}")
    return int(classes.max())


def read_label_maps(listing: Listing, *, ignore_label: int, reduce_zero_label: bool) -> FoundMaps:
    """Finds images, their label maps and their classes; images without a label map are left out.

    Args:
        listing: the folder.
        ignore_label: of pixels that belong to no class.
        reduce_zero_label: whether 0 stands for no class, and class + 1 for the others.

    Raises:
        ValueError: a label map of two images, two of one image, most of either without the other,
            or classes that cannot be known.
    """
    files, labels = _divided(listing)
    pairs, strays = pair_labels(files, labels, _NAME_ENDS)
    remedy = "set another dataset.root=... or dataset.exclude=[...]"
    check_most("label maps without an image", strays, len(labels), remedy)
    check_most(
        "images without a label map, left out",
        [file for file in files if file not in pairs],
        len(files),
        remedy,
    )
    listed = listed_splits(listing, "Segmentation")

    def split(file: str) -> str | None:
        return listed.get(PurePosixPath(file).stem) if listed else split_of(file)

    images = [FoundImage(f, split(f), [], label=pairs[f]) for f in files if f in pairs]
    table = find_class_table(listing)
    if table is not None:
        names: Sequence[str] = table.names
    else:
        largest = _largest_label(listing, [str(i.label) for i in images], ignore_label)
        names = [str(number) for number in range(largest + 1 - reduce_zero_label)]
    is_plain = table is None or table.is_plain(ignore_label)
    if not is_plain and (reduce_zero_label or not 0 <= ignore_label < 2**16):
        raise ValueError(
            "label maps are converted as the table of the folder says: set "
            "dataset.reduce_zero_label=False and dataset.ignore_label=255"
        )
    return FoundMaps(FoundDataset("label maps", categories(names), images), table, is_plain)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(os.path.abspath(source), target)  # noqa: PTH100, PTH211 (`resolve` follows links)


def write_label_maps(
    listing: Listing,
    found: FoundMaps,
    roles: Mapping[str, Sequence[FoundImage]],
    folder: Path,
    ignore_label: int,
) -> None:
    """Writes `ROLE/images`, links, and `ROLE/labels`, links or PNGs in numbers of the classes.

    Raises:
        ValueError: a label map has a value that the table of classes lacks.
    """
    faults: list[str] = []

    def write(role: str, image: FoundImage) -> None:
        _link(listing.path(image.file), folder / role / "images" / image.file)
        stem = image.file.rpartition(".")[0]
        target = folder / role / "labels" / f"{stem}.png"
        source = listing.path(str(image.label))
        try:
            # Of the header, which is all that large data sets leave time for.
            if (
                found.is_plain
                and source.suffix.lower() == ".png"
                and image_facts(source).mode in _NUMBERS
            ):
                _link(source, target)
                return
            coloured = found.table is not None and found.table.coloured
            values = _read(listing, str(image.label), coloured)
            labels = values
            if found.table is not None and not found.is_plain:
                labels = _converted(values, found.table, ignore_label)
        except ValueError as error:
            faults.append(fault_of(listing, str(image.label), error))
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        # 8 bits where they suffice, else 16.
        small = 0 <= labels.min() <= labels.max() < 256
        Image.fromarray(labels.astype(np.uint8 if small else np.uint16)).save(target)

    with ThreadPoolExecutor(_NUM_READERS) as writers:
        for role, images in roles.items():
            list(writers.map(lambda image, role=role: write(role, image), images))
    raise_faults("label map", sorted(faults))


def _converted(values: np.ndarray, table: ClassTable, ignore_label: int) -> np.ndarray:
    """Numbers (H, W) of a file to classes."""
    known = np.array(sorted(table.values), dtype=np.int64)
    classes = [table.values[int(value)] for value in known]
    numbers = np.array([ignore_label if c is None else c for c in classes])
    places = np.searchsorted(known, values).clip(0, len(known) - 1)
    fits = known[places] == values
    ignored = ~fits & (values == ignore_label) & (not table.coloured)
    if not (fits | ignored).all():
        shown = np.unique(values[~fits & ~ignored]).tolist()
        if table.coloured:
            shown = [(v >> 16, v >> 8 & 255, v & 255) for v in shown]
        raise ValueError(
            f"has {counted(len(shown), 'colour' if table.coloured else 'value')} that the table of "
            f"classes lacks, on {counted(int(np.count_nonzero(~fits & ~ignored)), 'pixel')}: "
            f"{first_few(shown)}"
        )
    return np.where(fits, numbers[places], ignore_label)
