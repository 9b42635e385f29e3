"""COCO-format data sets as a config names them: found, checked and loaded at the start.

What cannot work is refused before a model is built, by a message that names the override to
change. The checks live here, in a function that configs instantiate, so that they also hold
under Detectron2's own training script.
"""

import hashlib
import logging
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog, print_instances_class_histogram
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import register_coco_instances

from vitadapter.data.coco_format import CocoData, coco_classes, read_coco, with_masks
from vitadapter.data.coco_records import check_records
from vitadapter.data.image_files import missing_files, read_record_image
from vitadapter.data.json_entries import Findings, read_json
from vitadapter.data.semantic_maps import add_semantic_maps

__all__ = ["coco_metadata", "load_coco_dataset", "read_registered", "register_coco"]

logger = logging.getLogger(__name__)

Record = dict[str, object]

_ROLES = ("train", "test")
# What functions that load data raise on what they do not expect.
_FORMAT_ERRORS = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)
_MAX_READ_ATTEMPTS = 100


def _is_remote(path: str) -> bool:
    return "://" in path


def _named(paths: Iterable[str], limit: int = 3) -> str:
    return ", ".join(list(paths)[:limit])


def _exists(path: str) -> bool:
    return _is_remote(path) or Path(path).exists()


def _expand(path: str) -> str:
    """`path` with `~` resolved; a URL stays as it is."""
    return path if _is_remote(path) else str(Path(path).expanduser())


def _catalog_name(json_file: str, image_root: str) -> str:
    """A name that follows the paths and the state of the file: a corrected json is a new set."""
    json_path = Path(json_file)
    identity = [str(json_path.resolve()), str(Path(image_root).resolve())]
    if json_path.is_file():
        status = json_path.stat()
        identity += [str(status.st_mtime_ns), str(status.st_size)]
    return f"{json_path.stem}_{hashlib.sha1('|'.join(identity).encode()).hexdigest()[:10]}"


def _check_registered(name: str, role: str) -> None:
    own_data = f"dataset.{role}.json_file=... and dataset.{role}.image_root=..."
    if name not in DatasetCatalog:
        near = get_close_matches(name, DatasetCatalog.list(), n=3)
        hint = f" (near names: {_named(near)})" if near else ""
        raise ValueError(
            f"dataset.{role}.name={name} is not a registered data set{hint}: "
            f"set another dataset.{role}.name, or {own_data}"
        )
    metadata = MetadataCatalog.get(name)
    for path in (metadata.get("json_file"), metadata.get("image_root")):
        if path and not _exists(path):
            raise ValueError(
                f"{path}, a part of the data set '{name}', does not exist: set the environment "
                f"variable DETECTRON2_DATASETS to the folder that holds it, or {own_data}"
            )


def register_coco(
    name: str,
    json_file: str | None = None,
    image_root: str | None = None,
    *,
    role: str = "train",
) -> str:
    """Name under which Detectron2's catalogs hold the data set; may be called again at no cost.

    Args:
        name: a registered data set; not used when `json_file` is given.
        json_file: annotations in COCO's instances format, registered under a name of their own.
        image_root: folder that the file names in `json_file` are relative to.
        role: "train" or "test": which override an error names.

    Raises:
        ValueError: unknown name, missing file or missing folder.
    """
    if role not in _ROLES:
        raise ValueError(f"role must be one of {_ROLES}, got {role!r}")
    if json_file is None:
        if image_root is not None:
            raise ValueError(
                f"dataset.{role}.image_root={image_root} is given without annotations: "
                f"set dataset.{role}.json_file=... as well"
            )
        _check_registered(name, role)
        return name
    json_file = _expand(json_file)
    if not _is_remote(json_file) and not Path(json_file).is_file():
        raise ValueError(
            f"the annotation file {json_file} does not exist: set dataset.{role}.json_file=..."
        )
    if not image_root or not _exists(_expand(image_root)):
        raise ValueError(
            f"the image folder {image_root!r} of {json_file} does not exist: "
            f"set dataset.{role}.image_root=..."
        )
    image_root = _expand(image_root)
    registered = _catalog_name(json_file, image_root)
    if registered not in DatasetCatalog:
        register_coco_instances(registered, {}, json_file, image_root)
    return registered


def coco_metadata(
    name: str, json_file: str | None = None, image_root: str | None = None
) -> Metadata:
    """Metadata of a data set, with class names where they can be known without its images.

    Args:
        name, json_file, image_root: as in :func:`register_coco`; none of them has to exist.

    Returns:
        Metadata: without `thing_classes` when neither the catalog nor a json file has them.
    """
    if json_file is not None:
        json_file = _expand(json_file)
        name = _catalog_name(json_file, _expand(image_root or ""))
    if name in MetadataCatalog.list():
        metadata = MetadataCatalog.get(name)
        if "thing_classes" in metadata.as_dict():
            return metadata
        json_file = json_file or metadata.get("json_file")
    if json_file is None or not Path(json_file).is_file():
        return Metadata(name=name)
    try:
        classes = coco_classes(read_json(json_file), json_file, Findings())
        return Metadata(name=name, thing_classes=[category["name"] for category in classes])
    except (OSError, ValueError) as error:
        logger.warning("no class names: %s", error)
        return Metadata(name=name)


def read_registered(name: str, *, ground_truth: bool = False) -> CocoData:
    """Reads and checks a data set of Detectron2's catalog.

    The json file of a set that Detectron2 would read itself is read by :func:`read_coco`; other
    sets are what their function returns.

    Args:
        name: of the data set.
        ground_truth: whether to read what predictions are compared with: Detectron2's convention
            is the "json_file" of the metadata, if there is one.

    Raises:
        ValueError: the data set contradicts itself, or its metadata; names file and annotation.
    """
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    own_function = DatasetCatalog[name].__module__ != register_coco_instances.__module__
    if json_file and (ground_truth or not own_function):
        data = read_coco(json_file)
        if not own_function:
            data.located(metadata.image_root)
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
    """Names of the classes and their numbers, as Detectron2's loader would set them."""
    names = [str(class_name) for class_name in metadata.get("thing_classes", data.class_names)]
    numbers = metadata.get("thing_dataset_id_to_contiguous_id", data.dataset_ids)
    if names != data.class_names or numbers != data.dataset_ids:
        raise ValueError(
            f"{data.source} has {len(data.categories)} categories ({_named(data.class_names)}, "
            f"...), which are not the {len(names)} that the metadata of '{metadata.name}' name "
            f"({_named(names)}, ...)"
        )
    metadata.set(
        thing_classes=metadata.get("thing_classes", data.class_names),
        thing_dataset_id_to_contiguous_id=numbers,
    )


def _check_annotated(data: CocoData, role: str) -> None:
    """Only a test file made without annotations (COCO test-dev) may have none."""
    if any(record.get("annotations") for record in data.records):
        return
    if role == "test" and not data.has_annotations:
        logger.warning(
            "%s has no annotations: predictions are written, no AP is computed", data.source
        )
        return
    raise ValueError(f"{data.source} has no annotations that can be used")


def _check_num_classes(data: CocoData, name: str, num_classes: int) -> None:
    found = len(data.categories)
    if MetadataCatalog.get(name).get("thing_classes") is None:
        found = max(found, num_classes)  # the last classes may not occur
    if found != num_classes:
        raise ValueError(
            f"the annotations of '{name}' have {found} classes but the model predicts "
            f"{num_classes}: set dataset.num_classes={found}"
        )


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


def _check_images(records: list[Record], name: str, role: str) -> None:
    missing = missing_files(record["file_name"] for record in records)
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(records)} images of '{name}' do not exist "
            f"({_named(missing)}): set dataset.{role}.image_root=... to the folder that holds them"
        )
    errors = []
    for record in records[:_MAX_READ_ATTEMPTS]:
        try:
            read_record_image(record, "RGB")
        except ValueError as error:
            errors.append(str(error))
        else:
            return
    raise ValueError(
        f"none of the first {len(errors)} images of '{name}' can be used ({_named(errors)}): "
        f"set dataset.{role}.image_root=... or dataset.{role}.json_file=..."
    )


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
) -> list[Record]:
    """Loads and checks a COCO-format data set, registered by name or given by its files.

    Annotations whose box has no area in the image, and with `masks` those without a mask that can
    be used, are dropped; each kind is counted in one warning. See `coco_format`.

    Args:
        name: a registered data set; not used when `json_file` is given.
        json_file: annotations in COCO's instances format.
        image_root: folder that the file names in `json_file` are relative to.
        num_classes: number of classes that the model predicts.
        masks: whether instance masks are needed.
        filter_empty: whether to leave out images without usable annotations (as for training).
        sem_seg_root: folder of semantic maps, for :func:`add_semantic_maps`; None for none.
        role: "train" or "test": which override an error names.

    Returns:
        list[dict]: Detectron2's standard data set dicts; those of a json file as `CocoData` says.

    Raises:
        ValueError: the data cannot be used; the message names the override to change.
    """
    registered = register_coco(name, json_file, image_root, role=role)
    data = _load(registered, masks, role)
    _check_num_classes(data, registered, num_classes)
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
    # Only now: what training is left with must hold an image that can be read.
    _check_images(records, registered, role)
    if all("annotations" in record for record in records):
        print_instances_class_histogram(records, data.class_names)
    return records
