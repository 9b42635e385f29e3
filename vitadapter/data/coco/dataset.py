"""Finds, checks and loads COCO-format data sets that a config names."""

import logging
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

from detectron2.data import DatasetCatalog, MetadataCatalog, print_instances_class_histogram
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import register_coco_instances

from vitadapter.data.coco.annotations import (
    CocoData,
    coco_classes,
    read_coco,
    with_masks,
)
from vitadapter.data.coco.json_entries import Findings, read_json
from vitadapter.data.coco.records import check_records
from vitadapter.data.dataset_source import (
    DatasetSource,
    Record,
    catalog_name,
    check_num_classes,
    expanded,
    first_few,
    refuse_root,
)
from vitadapter.data.image_files import files_by_name

__all__ = [
    "add_semantic_maps",
    "coco_metadata",
    "load_coco_dataset",
    "read_registered",
    "register_coco",
]

logger = logging.getLogger(__name__)

_FILES = ("json_file", "image_root")
# What functions that load data raise if they meet something unexpected.
_FORMAT_ERRORS = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)


def _own_name(json_file: str, image_root: str) -> str:
    return catalog_name(Path(json_file).stem, (json_file, image_root))


def register_coco(
    name: str,
    json_file: str | None = None,
    image_root: str | None = None,
    *,
    role: str = "train",
) -> str:
    """Registers a data set, unless it is registered, and returns its name in Detectron2's catalogs.

    Args:
        name: a registered data set; not used if `json_file` is given.
        json_file: annotations in COCO's instances format, registered under a name of their own.
        image_root: folder that the file names in `json_file` are relative to.
        role: "train" or "test": which override an error names.

    Raises:
        ValueError: the name is unknown, or a file or folder is missing.
    """
    source = DatasetSource(role, _FILES)
    if json_file is None and image_root is None:
        source.check_name(name, DatasetCatalog)
        metadata = MetadataCatalog.get(name)
        source.check_parts(name, [metadata.get(key) for key in _FILES])
        return name
    json_file, image_root = source.own_files(json_file, image_root)
    registered = _own_name(json_file, image_root)
    if registered not in DatasetCatalog:
        register_coco_instances(registered, {}, json_file, image_root)
    return registered


def coco_metadata(
    name: str, json_file: str | None = None, image_root: str | None = None
) -> Metadata:
    """Metadata of a data set, with class names if they are known without its images.

    Args:
        name, json_file, image_root: as in `register_coco`; none of them has to exist.

    Returns:
        Metadata, without `thing_classes` if neither the catalog nor a json file has them.
    """
    if json_file is not None:
        json_file = expanded(json_file)
        name = _own_name(json_file, expanded(image_root or ""))
    if name in MetadataCatalog.list():
        metadata = MetadataCatalog.get(name)
        if "thing_classes" in metadata.as_dict():
            return metadata
        json_file = json_file or metadata.get("json_file")
    if json_file is None or not Path(json_file).is_file():
        return Metadata(name=name)
    try:
        classes, _ = coco_classes(read_json(json_file), json_file, Findings())
        return Metadata(
            name=name,
            thing_classes=[category["name"] for category in classes],
            thing_dataset_id_to_contiguous_id={c["id"]: n for n, c in enumerate(classes)},
        )
    except (OSError, ValueError) as error:
        logger.warning("no class names: %s", error)
        return Metadata(name=name)


def read_registered(name: str, *, ground_truth: bool = False) -> CocoData:
    """Reads and checks a data set of Detectron2's catalog.

    If Detectron2 would read a json file itself, `read_coco` reads it. Other data sets are what
    their function returns.

    Args:
        name: of the data set.
        ground_truth: whether to read what predictions are compared with, which by Detectron2's
            convention is the "json_file" of the metadata, if there is one.

    Raises:
        ValueError: the data set contradicts itself or its metadata; names file and annotation.
    """
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    own_function = DatasetCatalog[name].__module__ != register_coco_instances.__module__
    if json_file and (ground_truth or not own_function):
        data = read_coco(json_file)
        if (image_root := metadata.get("image_root")) is not None:
            data.located(image_root)
        if not own_function:
            _set_classes(metadata, data)
        return data
    try:
        records = DatasetCatalog.get(name)
    except _FORMAT_ERRORS as error:
        raise ValueError(f"the data set '{name}' cannot be loaded: {error!r}") from error
    return check_records(
        records,
        f"the data set '{name}'",
        metadata.get("thing_classes"),
        metadata.get("thing_dataset_id_to_contiguous_id"),
    )


def _set_classes(metadata: Metadata, data: CocoData) -> None:
    """Sets names and numbers of the classes, as Detectron2's loader would."""
    names = [str(class_name) for class_name in metadata.get("thing_classes", data.class_names)]
    numbers = metadata.get("thing_dataset_id_to_contiguous_id", data.dataset_ids)
    if names != data.class_names or numbers != data.dataset_ids:
        raise ValueError(
            f"{data.source} has {len(data.categories)} categories ({first_few(data.class_names)}), "
            f"which are not the {len(names)} that the metadata of '{metadata.name}' name "
            f"({first_few(names)})"
        )
    metadata.set(
        thing_classes=metadata.get("thing_classes", data.class_names),
        thing_dataset_id_to_contiguous_id=numbers,
    )


def _check_annotated(data: CocoData, role: str) -> None:
    """Refuses data without annotations, unless it is a test file made without them (test-dev)."""
    if any(record.get("annotations") for record in data.records):
        return
    if role == "test" and not data.has_annotations:
        logger.warning(
            "%s has no annotations: predictions are written, no AP is computed", data.source
        )
        return
    raise ValueError(f"{data.source} has no annotations that can be used")


def _load(name: str, masks: bool, role: str) -> CocoData:
    try:
        data = read_registered(name)
        _check_annotated(data, role)
    except ValueError as error:
        raise ValueError(f"{error}: set dataset.{role}.json_file=... to another file") from error
    if not masks:
        return data
    try:
        return with_masks(data)
    except ValueError as error:
        raise ValueError(
            f"{error}, but the config trains masks: use a box-only config (faster_rcnn_*, atss_*, "
            "gfl_*, sparse_rcnn_*)"
        ) from error


def add_semantic_maps(
    records: Sequence[Record], sem_seg_root: str, *, role: str = "train"
) -> list[Record]:
    """Adds "sem_seg_file_name" to data set dicts, Detectron2's key for the map of an image.

    Args:
        records: Detectron2's standard data set dicts.
        sem_seg_root: folder with a png named like each image, which has a label per pixel, or 255
            for none. COCO-Stuff's `stuffthingmaps/train2017` is such a folder.
        role: "train" or "test": which override an error names.

    Returns:
        New dicts.

    Raises:
        ValueError: the folder or a map does not exist.
    """
    root = Path(sem_seg_root).expanduser()
    override = f"set dataset.{role}.sem_seg_root=..., or =null to train without semantic maps"
    if not root.is_dir():
        raise ValueError(f"the folder of semantic maps {root} does not exist: {override}")
    maps = files_by_name(root, ".png")
    names = [normalize("NFC", Path(str(record["file_name"])).stem) for record in records]
    missing = [f"{name}.png" for name in names if name not in maps]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} semantic maps are not in {root} "
            f"({first_few(missing)}): {override}"
        )
    return [
        {**record, "sem_seg_file_name": maps[name]}
        for record, name in zip(records, names, strict=True)
    ]


def load_coco_dataset(
    name: str,
    json_file: str | None = None,
    image_root: str | None = None,
    *,
    num_classes: int,
    masks: bool = True,
    filter_empty: bool = False,
    sem_seg_root: str | None = None,
    role: str = "train",
    root: str | None = None,
) -> list[Record]:
    """Loads and checks a COCO-format data set, registered by name or given by its files.

    Annotations whose box has no area in the image are dropped, and with `masks` also those without
    a mask that can be used. Each kind is counted in one warning. See `annotations`.

    Args:
        name: a registered data set; not used if `json_file` is given.
        json_file: annotations in COCO's instances format.
        image_root: folder that the file names in `json_file` are relative to.
        num_classes: number of classes that the model predicts.
        masks: whether instance masks are needed.
        filter_empty: whether to leave out images without usable annotations (as for training).
        sem_seg_root: folder of semantic maps, for `add_semantic_maps`, or None.
        role: "train" or "test": which override an error names.
        root: `dataset.root`, which must be None by now; see :func:`refuse_root`.

    Returns:
        Detectron2's standard data set dicts; see `CocoData` for those of a json file.

    Raises:
        ValueError: the data cannot be used; the message names the override to change.
    """
    refuse_root(root)
    registered = register_coco(name, json_file, image_root, role=role)
    data = _load(registered, masks, role)
    found = len(data.categories)
    if MetadataCatalog.get(registered).get("thing_classes") is None:
        found = max(found, num_classes)  # the last classes may not occur
    advice = ""
    if data.parents:
        advice = (
            f". If {first_few(data.parents)} (no annotation, and the supercategory of others) "
            'should be a class, as in another file, remove every "supercategory" from '
            f"{data.source} instead"
        )
    check_num_classes(f"the annotations of '{registered}' have", found, num_classes, advice)
    records = data.records
    if filter_empty:
        records = filter_images_with_only_crowd_annotations(records)
        if not records:
            raise ValueError(
                f"no image of '{registered}' has a usable annotation: "
                f"set dataset.{role}.json_file=..."
            )
    if sem_seg_root is not None:
        records = add_semantic_maps(records, sem_seg_root, role=role)
    # Only now, because one of the images that are left for training must be readable.
    source = DatasetSource(role, _FILES)
    source.check_files(records, registered, file_name="image_root")
    source.check_images(records, registered)
    if all("annotations" in record for record in records):
        print_instances_class_histogram(records, data.class_names)
    return records
