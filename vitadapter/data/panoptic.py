"""Panoptic segmentation data sets as a config names them: found, checked and loaded at the start.

What cannot work is refused before a model is built, by a message that names the override to
change, as `vitadapter.data.coco` does.
"""

import hashlib
import logging
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from vitadapter.data.image_files import missing_files, read_record_image
from vitadapter.data.panoptic_json import (
    PanopticClasses,
    read_panoptic_json,
    read_panoptic_records,
)
from vitadapter.data.panoptic_maps import check_segment_ids, read_panoptic_png, rgb_to_id

__all__ = ["load_panoptic_dataset", "panoptic_metadata", "register_panoptic"]

logger = logging.getLogger(__name__)

Record = dict[str, object]

_ROLES = ("train", "test")
_FILES = ("json_file", "panoptic_root", "image_root")
# Images and maps that are read at the start: a wrong folder shows in nearly every one.
_NUM_CHECKED = 10


def _own_data(role: str) -> str:
    return " and ".join(f"dataset.{role}.{key}=..." for key in _FILES)


def _known_files(name: str, role: str) -> tuple[tuple[str, str, str], str | None]:
    """Panoptic json, folders of maps and of images; instances json of a registered set."""
    if name not in DatasetCatalog:
        near = get_close_matches(name, DatasetCatalog.list(), n=3)
        hint = f" (near names: {', '.join(near)})" if near else ""
        raise ValueError(
            f"dataset.{role}.name={name} is not a registered data set{hint}: set another "
            f"dataset.{role}.name, or {_own_data(role)}"
        )
    metadata = MetadataCatalog.get(name)
    files = [metadata.get(key) for key in ("panoptic_json", "panoptic_root", "image_root")]
    if None in files:
        raise ValueError(
            f"dataset.{role}.name={name} is not a panoptic data set: its metadata lack "
            f"panoptic_json, panoptic_root or image_root; {_own_data(role)} serve any"
        )
    for path in files:
        if not Path(path).exists():
            raise ValueError(
                f"{path}, a part of the data set '{name}', does not exist: set the environment "
                f"variable DETECTRON2_DATASETS to the folder that holds it, or {_own_data(role)}"
            )
    instances_json = metadata.get("json_file")
    if instances_json is not None and not Path(instances_json).is_file():
        logger.warning("%s does not exist: no AP of instances on '%s'", instances_json, name)
        instances_json = None
    return (files[0], files[1], files[2]), instances_json


def _own_files(
    json_file: str | None, panoptic_root: str | None, image_root: str | None, role: str
) -> tuple[str, str, str]:
    paths = []
    for key, value in zip(_FILES, (json_file, panoptic_root, image_root), strict=True):
        if not value:
            raise ValueError(f"a panoptic data set of your own needs dataset.{role}.{key}=...")
        path = Path(value).expanduser()
        if not (path.is_file() if key == "json_file" else path.is_dir()):
            kind = "file" if key == "json_file" else "folder"
            raise ValueError(f"the {kind} {path} does not exist: set dataset.{role}.{key}=...")
        paths.append(str(path))
    return paths[0], paths[1], paths[2]


def _catalog_name(name: str, files: Sequence[str | None]) -> str:
    """A name that follows the paths and the state of the json: a corrected one is a new set."""
    status = Path(str(files[0])).stat()
    identity = [str(Path(file).resolve()) for file in files if file is not None]
    identity += [str(status.st_mtime_ns), str(status.st_size)]
    return f"{name}_{hashlib.sha1('|'.join(identity).encode()).hexdigest()[:10]}"


def _class_metadata(classes: PanopticClasses) -> dict[str, object]:
    pairs = [(id_, index) for index, id_ in enumerate(classes.dataset_ids)]
    return {
        "thing_classes": list(classes.names[: classes.num_things]),
        # Of all classes: that is how Detectron2 looks up the names of panoptic segments.
        "stuff_classes": list(classes.names),
        "thing_dataset_id_to_contiguous_id": dict(pairs[: classes.num_things]),
        "stuff_dataset_id_to_contiguous_id": dict(pairs[classes.num_things :]),
    }


def _register(registered: str, files: tuple[str, str, str], instances_json: str | None) -> None:
    _, classes = read_panoptic_json(files[0])
    DatasetCatalog.register(registered, lambda: read_panoptic_records(*files))
    metadata = MetadataCatalog.get(registered)
    metadata.set(
        panoptic_json=files[0],
        panoptic_root=files[1],
        image_root=files[2],
        evaluator_type="coco_panoptic_seg",
        **_class_metadata(classes),
    )
    if instances_json is not None:
        metadata.json_file = instances_json


def _check_classes(metadata: Metadata, num_classes: int, num_things: int) -> None:
    found = len(metadata.stuff_classes), len(metadata.thing_classes)
    if found != (num_classes, num_things):
        raise ValueError(
            f"{metadata.panoptic_json} has {found[0]} classes, of which {found[1]} are things, but "
            f"the model predicts {num_classes}, of which {num_things} are things: set "
            f"dataset.num_classes={found[0]} and dataset.num_things={found[1]}"
        )


def register_panoptic(
    name: str,
    json_file: str | None = None,
    panoptic_root: str | None = None,
    image_root: str | None = None,
    instances_json: str | None = None,
    *,
    num_classes: int,
    num_things: int,
    role: str = "train",
) -> str:
    """Name under which Detectron2's catalogs hold the data set.

    Classes are numbered as `PanopticClasses` says, whatever the registered set does. Metadata are
    those of Detectron2's standard form, except that `thing_classes` has the things alone, as its
    evaluator of instances needs it.

    Args:
        name: a registered panoptic data set; only a label when files are given.
        json_file: annotations in COCO's panoptic format.
        panoptic_root: folder of the panoptic maps.
        image_root: folder that the images' file names are relative to.
        instances_json: the things once more, in COCO's instances format, for their AP; None takes
            that of the registered set, or none.
        num_classes: number of classes that the model predicts.
        num_things: how many of them are things.
        role: "train" or "test": which override an error names.

    Raises:
        ValueError: unknown name, missing file or folder, another format or number of classes.
    """
    if role not in _ROLES:
        raise ValueError(f"role must be one of {_ROLES}, got {role!r}")
    if instances_json is not None:
        instances_json = str(Path(instances_json).expanduser())
        if not Path(instances_json).is_file():
            raise ValueError(
                f"the file {instances_json} does not exist: set dataset.{role}.instances_json=..."
            )
    if json_file is None and panoptic_root is None and image_root is None:
        files, known_instances = _known_files(name, role)
        instances_json = instances_json or known_instances
    else:
        files = _own_files(json_file, panoptic_root, image_root, role)
    registered = _catalog_name(name, (*files, instances_json))
    if registered not in DatasetCatalog:
        _register(registered, files, instances_json)
    _check_classes(MetadataCatalog.get(registered), num_classes, num_things)
    return registered


def panoptic_metadata(name: str, json_file: str | None, num_things: int) -> Metadata:
    """Metadata with class names as far as they can be known without images.

    Args:
        name: of a registered data set; only a label when a file is given.
        json_file: as in :func:`register_panoptic`; need not exist.
        num_things: as in :func:`register_panoptic`.

    Returns:
        Metadata: without class names where neither the file nor the catalog has them.
    """
    if json_file is not None and Path(json_file).expanduser().is_file():
        _, classes = read_panoptic_json(str(Path(json_file).expanduser()))
        return Metadata(name=name, **_class_metadata(classes))
    if json_file is None and name in MetadataCatalog.list():
        names = MetadataCatalog.get(name).get("stuff_classes")
        if names is not None:
            things = list(names[:num_things])
            return Metadata(name=name, thing_classes=things, stuff_classes=list(names))
    return Metadata(name=name)


def _check_files(records: Sequence[Record], name: str, role: str) -> None:
    for key, override in (("file_name", "image_root"), ("pan_seg_file_name", "panoptic_root")):
        missing = missing_files(str(record[key]) for record in records)
        if missing:
            raise ValueError(
                f"{len(missing)} of the {len(records)} files of '{name}' do not exist "
                f"({', '.join(missing[:3])}): set dataset.{role}.{override}=... to the folder "
                "that holds them"
            )
    chosen = np.linspace(0, len(records) - 1, min(_NUM_CHECKED, len(records))).astype(int)
    errors = []
    for record in (records[i] for i in chosen):
        try:
            image = read_record_image(record, "RGB")
        except ValueError as error:
            errors.append(str(error))
            continue
        size = (image.shape[0], image.shape[1])
        ids = rgb_to_id(read_panoptic_png(str(record["pan_seg_file_name"]), size))
        check_segment_ids(ids, record)
    if len(errors) == len(chosen):
        raise ValueError(
            f"no image of '{name}' that was tried can be used ({errors[0]}): "
            f"set dataset.{role}.image_root=..."
        )


def load_panoptic_dataset(
    name: str,
    json_file: str | None = None,
    panoptic_root: str | None = None,
    image_root: str | None = None,
    *,
    num_classes: int,
    num_things: int,
    role: str = "train",
) -> list[Record]:
    """Loads and checks a panoptic data set, registered by name or given by its files.

    Args:
        name, json_file, panoptic_root, image_root, num_classes, num_things, role: as in
            :func:`register_panoptic`.

    Returns:
        list[dict]: as `read_panoptic_records` returns them.

    Raises:
        ValueError: the data cannot be used; the message names the override to change, or the file.
    """
    registered = register_panoptic(
        name,
        json_file,
        panoptic_root,
        image_root,
        num_classes=num_classes,
        num_things=num_things,
        role=role,
    )
    records: list[Record] = DatasetCatalog.get(registered)
    _check_files(records, name, role)
    logger.info("%d images of '%s' for %s", len(records), name, role)
    return records
