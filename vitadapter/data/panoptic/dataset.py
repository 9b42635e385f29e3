"""Finds, checks and loads panoptic segmentation data sets that a config names."""

import logging
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from vitadapter.data.dataset_source import DatasetSource, Record, catalog_name, refuse_root
from vitadapter.data.panoptic.annotations import (
    PanopticClasses,
    read_panoptic_json,
    read_panoptic_records,
)
from vitadapter.data.panoptic.maps import read_record_map

__all__ = ["load_panoptic_dataset", "panoptic_metadata", "register_panoptic"]

logger = logging.getLogger(__name__)

_FILES = ("json_file", "panoptic_root", "image_root")


def _known_files(name: str, source: DatasetSource) -> tuple[tuple[str, ...], str | None]:
    """The panoptic json, folders of maps and images, and instances json of a registered set."""
    source.check_name(name, DatasetCatalog)
    metadata = MetadataCatalog.get(name)
    files = tuple(metadata.get(key) for key in ("panoptic_json", "panoptic_root", "image_root"))
    if None in files:
        raise ValueError(
            f"dataset.{source.role}.name={name} is not a panoptic data set: its metadata lack "
            f"panoptic_json, panoptic_root or image_root. Set {source.own_data} instead"
        )
    source.check_parts(name, files)
    instances_json = metadata.get("json_file")
    if instances_json is not None and not Path(instances_json).is_file():
        logger.warning("%s does not exist: no AP of instances on '%s'", instances_json, name)
        instances_json = None
    return files, instances_json


def _class_metadata(classes: PanopticClasses) -> dict[str, object]:
    pairs = [(id_, index) for index, id_ in enumerate(classes.dataset_ids)]
    return {
        "thing_classes": list(classes.names[: classes.num_things]),
        # All classes, because Detectron2 looks up the names of panoptic segments here.
        "stuff_classes": list(classes.names),
        "thing_dataset_id_to_contiguous_id": dict(pairs[: classes.num_things]),
        "stuff_dataset_id_to_contiguous_id": dict(pairs[classes.num_things :]),
    }


def _register(registered: str, files: tuple[str, ...], instances_json: str | None) -> None:
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
    """Registers a data set, unless it is registered, and returns its name in Detectron2's catalogs.

    Classes are numbered as `PanopticClasses` says, whatever the registered set does. The metadata
    have Detectron2's standard form, except that `thing_classes` has only the things, as its
    evaluator of instances needs.

    Args:
        name: a registered panoptic data set; only a label if files are given.
        json_file: annotations in COCO's panoptic format.
        panoptic_root: folder of the panoptic maps.
        image_root: folder that the images' file names are relative to.
        instances_json: the things in COCO's instances format as well, for their AP; None takes
            that of the registered set, if it has one.
        num_classes: number of classes that the model predicts.
        num_things: how many of them are things.
        role: "train" or "test": which override an error names.

    Raises:
        ValueError: the name is unknown, a file or folder is missing, or the format or the number
            of classes is wrong.
    """
    source = DatasetSource(role, _FILES)
    if instances_json is not None:
        instances_json = source.existing("instances_json", instances_json)
    if json_file is None and panoptic_root is None and image_root is None:
        files, known_instances = _known_files(name, source)
        instances_json = instances_json or known_instances
    else:
        files = source.own_files(json_file, panoptic_root, image_root)
    registered = catalog_name(name, filter(None, (*files, instances_json)))
    if registered not in DatasetCatalog:
        _register(registered, files, instances_json)
    _check_classes(MetadataCatalog.get(registered), num_classes, num_things)
    return registered


def panoptic_metadata(name: str, json_file: str | None, num_things: int) -> Metadata:
    """Metadata with class names, if they are known without images.

    Args:
        name: of a registered data set; only a label if a file is given.
        json_file: as in `register_panoptic`; need not exist.
        num_things: as in `register_panoptic`.

    Returns:
        Metadata, without class names if neither the file nor the catalog has them.
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


def load_panoptic_dataset(
    name: str,
    json_file: str | None = None,
    panoptic_root: str | None = None,
    image_root: str | None = None,
    *,
    num_classes: int,
    num_things: int,
    role: str = "train",
    root: str | None = None,
) -> list[Record]:
    """Loads and checks a panoptic data set, registered by name or given by its files.

    Args:
        name, json_file, panoptic_root, image_root, num_classes, num_things, role: as in
            `register_panoptic`.
        root: `dataset.root`, which must be None by now; see `refuse_root`.

    Returns:
        What `read_panoptic_records` returns.

    Raises:
        ValueError: the data cannot be used; the message names the override to change, or the file.
    """
    refuse_root(root)
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
    source = DatasetSource(role, _FILES)
    source.check_files(records, name, file_name="image_root", pan_seg_file_name="panoptic_root")
    source.check_images(records, name, read_record_map)
    logger.info("%d images of '%s' for %s", len(records), name, role)
    return records
