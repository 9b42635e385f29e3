"""A folder, recognised and brought into the form that `coco`, `sem_seg` and `panoptic` load.

What is made lies in a cache, never in the user's folder, and is made once for each state of it.
"""

import csv
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from vitadapter.data.dataset_source import counted, first_few
from vitadapter.data.folders.coco_json import coco_files, read_coco_folder
from vitadapter.data.folders.found import FoundDataset, FoundImage, coco_content
from vitadapter.data.folders.label_maps import (
    label_map_files,
    read_label_maps,
    write_label_maps,
)
from vitadapter.data.folders.labelme import labelme_files, read_labelme
from vitadapter.data.folders.listing import Listing
from vitadapter.data.folders.panoptic_json import (
    panoptic_content,
    panoptic_files,
    read_panoptic_folder,
)
from vitadapter.data.folders.splits import FolderSettings, assign_splits, labelled
from vitadapter.data.folders.voc import read_voc, voc_files
from vitadapter.data.folders.yolo import read_yolo, yolo_files

__all__ = [
    "KINDS",
    "LabelSettings",
    "Prepared",
    "Written",
    "kind_of",
    "located",
    "prepare",
    "write_prepared",
]

logger = logging.getLogger(__name__)

KINDS = ("instances", "semantic", "panoptic")
"""What a config trains."""

# Change it with anything that changes what is written: older entries of the cache are not reused.
_VERSION = 2

_FORMATS: dict[str, tuple[Callable[[Listing], list[str]], Callable[[Listing], FoundDataset]]] = {
    "COCO": (coco_files, read_coco_folder),
    "YOLO": (yolo_files, read_yolo),
    "Pascal VOC": (voc_files, read_voc),
    "labelme": (labelme_files, read_labelme),
}

_LABEL_MAPS = "label maps (a folder such as labels, masks or annotations with PNGs)"

Values = dict[str, object]


@dataclass(frozen=True)
class LabelSettings:
    """`dataset.ignore_label` and `dataset.reduce_zero_label` of a semantic segmenter."""

    ignore_label: int = 255
    reduce_zero_label: bool = False


class Written(NamedTuple):
    """What `write_prepared` has read and written.

    Attributes:
        format: of the user's folder, such as "YOLO".
        values: of the keys of a config, such as "dataset.num_classes".
    """

    format: str
    values: Values


@dataclass(frozen=True)
class Prepared:
    """A folder that can be loaded.

    Attributes:
        kind: one of `KINDS`.
        format: as in `Written`.
        root: the user's folder.
        folder: in the cache, of what was made.
        values: of the keys of a config, such as "dataset.num_classes".
    """

    kind: str
    format: str
    root: Path
    folder: Path
    values: Values


def _recognised(listing: Listing) -> Callable[[Listing], FoundDataset]:
    """The reader of the only format of instances that the folder has."""
    found = {name: files(listing) for name, (files, _) in _FORMATS.items()}
    found = {name: files for name, files in found.items() if files}
    if len(found) > 1:
        shown = " and ".join(f"{name} ({files[0]})" for name, files in found.items())
        endings = sorted({Path(files[0]).suffix for files in found.values()})
        raise ValueError(
            f"dataset.root={listing.root} holds annotations in several formats, {shown}: leave all "
            f"but one out, for instance by dataset.exclude=['*{endings[0]}']"
        )
    if not found:
        _refuse(listing, "COCO, YOLO, Pascal VOC or labelme")
    return _FORMATS[next(iter(found))][1]


def kind_of(listing: Listing) -> str:
    """What a folder serves to train, if it is not said: instances before anything else.

    Raises:
        ValueError: nothing.
    """
    if any(files(listing) for files, _ in _FORMATS.values()):
        return "instances"
    if panoptic_files(listing):
        return "panoptic"
    if not label_map_files(listing):
        _refuse(listing, f"{', '.join(_FORMATS)}, COCO panoptic or {_LABEL_MAPS}")
    return "semantic"


def _refuse(listing: Listing, formats: str) -> None:
    if not listing.files:
        raise ValueError(f"dataset.root={listing.root} holds no file that is read")
    empty = [name for name, (size, _) in listing.files.items() if size == 0]
    raise ValueError(
        f"dataset.root={listing.root} has {counted(len(listing.images), 'image')}, but no "
        f"annotations in the format of {formats} among its {counted(len(listing.files), 'file')} "
        f"({first_few([*listing.files], 5)})"
        + (f"; {counted(len(empty), 'empty file')} ({first_few(empty)})" if empty else "")
    )


def _write_json(path: Path, content: object) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=True)


def _write_splits(folder: Path, roles: Mapping[str, Sequence[FoundImage]]) -> None:
    """The list of images of each role, for the user."""
    path = folder / "splits.csv"
    with path.open("w", encoding="utf-8", newline="", errors="surrogateescape") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "role", "label file"])
        for role, images in roles.items():
            rows.writerows((i.file, role, "no" if i.annotations is None else "yes") for i in images)


def _prepare_instances(
    listing: Listing, settings: FolderSettings, folder: Path, reuse: bool
) -> Written:
    found = _recognised(listing)(listing)
    roles = assign_splits(found.images, settings)
    values: Values = {"dataset.num_classes": len(found.categories)}
    for role, images in roles.items():
        kept = labelled(images, settings, role)
        splits = {image.split for image in images}
        if not any(image.annotations for image in kept):
            raise ValueError(f"dataset.{role} has no object in its {counted(len(images), 'image')}")
        # Only of whole splits: one may be divided.
        whole = reuse and len(splits) == 1 and found.as_it_is.get(next(iter(splits)) or "")
        if whole and len(kept) == sum(image.split in splits for image in found.images):
            json_file, image_root = whole
        else:
            json_file, image_root = f"{role}.json", str(listing.root.resolve())
            _write_json(folder / json_file, coco_content(kept, found.categories))
        values[f"dataset.{role}.json_file"] = json_file
        values[f"dataset.{role}.image_root"] = image_root
    _write_splits(folder, roles)
    logger.info(
        "%s is in %s's format, with %s (%s)",
        listing.root,
        found.kind,
        counted(len(found.categories), "class"),
        first_few(found.class_names, 10),
    )
    return Written(found.kind, values)


def _prepare_semantic(
    listing: Listing, settings: FolderSettings, folder: Path, labels: LabelSettings
) -> Written:
    if not label_map_files(listing):
        _refuse(listing, _LABEL_MAPS)
    found = read_label_maps(
        listing,
        ignore_label=labels.ignore_label,
        reduce_zero_label=labels.reduce_zero_label,
    )
    roles = assign_splits(found.dataset.images, settings)
    write_label_maps(listing, found, roles, folder, labels.ignore_label)
    _write_splits(folder, roles)
    values: Values = {
        "dataset.num_classes": len(found.dataset.categories),
        "dataset.class_names": None,
        "dataset.reduce_zero_label": labels.reduce_zero_label,
    }
    if found.table is not None:
        names = "".join(f"{name}\n" for name in found.dataset.class_names)
        (folder / "classes.txt").write_text(names, encoding="utf-8")
        values["dataset.class_names"] = "classes.txt"
    for role in roles:
        values[f"dataset.{role}.image_root"] = f"{role}/images"
        values[f"dataset.{role}.label_root"] = f"{role}/labels"
    return Written(found.dataset.kind, values)


def _prepare_panoptic(listing: Listing, settings: FolderSettings, folder: Path) -> Written:
    if not panoptic_files(listing):
        _refuse(listing, "COCO panoptic (a json file with segments_info)")
    found, classes = read_panoptic_folder(listing)
    roles = assign_splits(found.images, settings)
    _write_splits(folder, roles)
    values: Values = {
        "dataset.num_classes": len(classes.names),
        "dataset.num_things": classes.num_things,
    }
    for role, images in roles.items():
        _write_json(folder / f"{role}.json", panoptic_content(images, found.categories))
        values[f"dataset.{role}.json_file"] = f"{role}.json"
        values[f"dataset.{role}.panoptic_root"] = str(listing.root.resolve())
        values[f"dataset.{role}.image_root"] = str(listing.root.resolve())
    return Written(found.kind, values)


def write_prepared(
    listing: Listing,
    kind: str,
    settings: FolderSettings,
    labels: LabelSettings,
    folder: Path,
    *,
    reuse: bool = True,
) -> Written:
    """Reads the user's folder and writes what loaders need into another.

    Args:
        listing: of the user's folder.
        kind: one of `KINDS`.
        settings: of the folder.
        labels: of label maps.
        folder: that exists and is empty.
        reuse: whether to name json files in the user's folder that can be loaded as they are,
            instead of writing others.

    Returns:
        The format and values of the keys of a config; paths in `folder` are relative to it.

    Raises:
        ValueError: the folder cannot be trained on.
    """
    if kind != "instances" and settings.unlabelled is not None:
        raise ValueError(
            f"dataset.unlabelled={settings.unlabelled} is of images without boxes or polygons: "
            f"leave it out of {kind} data, of which images without a map are left out"
        )
    if kind != "semantic" and labels != LabelSettings():
        raise ValueError(
            f"ignore_label={labels.ignore_label} and reduce_zero_label="
            f"{labels.reduce_zero_label} are of label maps: leave them out of {kind}"
        )
    if kind == "semantic":
        return _prepare_semantic(listing, settings, folder, labels)
    if kind == "panoptic":
        return _prepare_panoptic(listing, settings, folder)
    return _prepare_instances(listing, settings, folder, reuse)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "vitadapter" / "data"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Of the processes of a run, lets one make a folder; a killed one leaves no lock behind."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = (folder.parent / f".{folder.name}.lock").open("w")
    except OSError as error:
        raise ValueError(
            f"{folder.parent} cannot be written ({error}): set the environment variable "
            "XDG_CACHE_HOME to a folder that can"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def located(values: Values, folder: Path) -> Values:
    """Values that `write_prepared` returns, with absolute paths."""
    return {
        key: str(folder / str(value))
        if value is not None and key.endswith(("_root", "json_file", "class_names"))
        else value
        for key, value in values.items()
    }


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of another, empty or new, if nothing fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = folder.with_name(f".{folder.name}-{uuid4().hex[:8]}")
    making.mkdir()
    try:
        yield making
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _made(folder: Path, write: Callable[[Path], Written]) -> Written:
    """What is in the folder of the cache, which is made if it is not there."""
    summary = folder / "prepared.json"
    if not summary.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        with made_whole(folder) as making:
            _write_json(making / summary.name, write(making)._asdict())
    return Written(**json.loads(summary.read_text(encoding="utf-8")))


def prepare(
    root: str,
    kind: str | None,
    settings: FolderSettings,
    labels: LabelSettings = LabelSettings(),
    check: Callable[[Prepared], None] | None = None,
) -> Prepared:
    """Finds or makes what loaders need of a folder.

    Listing the folder takes seconds; the rest is done only if a file or a setting has changed. Of
    several processes one does it, and the others wait.

    Args:
        root: the user's folder.
        kind: one of `KINDS`; None for what `kind_of` says.
        settings: of the folder.
        labels: of label maps.
        check: is called in the same way, with the result.

    Raises:
        ValueError: the folder cannot be trained on, or there is no place for the cache.
    """
    listing = Listing(root, settings.exclude)
    kind = kind or kind_of(listing)
    state = (_VERSION, listing.fingerprint(), kind, settings, labels)
    digest = hashlib.sha256(repr(state).encode()).hexdigest()[:16]
    folder = _cache() / f"{listing.root.resolve().name[:60]}-{kind}-{digest}"
    with _locked(folder):
        found = _made(folder, lambda made: write_prepared(listing, kind, settings, labels, made))
        values = located(found.values, folder)
        prepared = Prepared(kind, found.format, listing.root, folder, values)
        if check is not None:
            check(prepared)
    logger.info("dataset.root=%s is prepared in %s", root, folder)
    return prepared
