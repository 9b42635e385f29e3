"""Reads `coco_instances_results.json`, the predictions that Detectron2's `COCOEvaluator` writes."""

import contextlib
import io
import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pycocotools.coco import COCO

__all__ = ["EvaluatedImages", "Instance", "load_annotations", "load_results"]

Instance = Mapping[str, object]
"""An annotation or a prediction in COCO's format."""

_ANNOTATION_KEYS = {"image_id", "category_id", "bbox"}
_LISTED_KEYS = {"images": {"id", "file_name"}, "categories": {"id", "name"}}
_RESULT_KEYS = {*_ANNOTATION_KEYS, "score"}


@dataclass(frozen=True)
class EvaluatedImages:
    """Images of a data set with what is annotated and what is predicted on them."""

    api: COCO
    predictions: Mapping[int, list[Instance]]

    def annotated_ids(self) -> list[int]:
        """The ids of the images that have annotations, in ascending order."""
        return sorted(i for i in self.api.imgs if self.api.imgToAnns.get(i))


def _read_json(path: str | Path, role: str) -> object:
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{role} must be a json file, but {path} does not exist")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{role} must be a json file, but {path} is not one: {error}") from error


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check_keys(entry: object, keys: set[str], name: str) -> None:
    if not isinstance(entry, Mapping) or not keys <= set(entry):
        found = sorted(entry) if isinstance(entry, Mapping) else entry
        raise ValueError(f"{name} must be an object with {sorted(keys)}, got {found}")


def _check_entry(entry: object, keys: set[str], name: str) -> None:
    """Refuses what cannot be drawn; `name` tells where the entry is from."""
    _check_keys(entry, keys, name)
    box = entry["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        raise ValueError(f"{name} must have a box of 4 finite numbers, got {box!r}")
    if "score" in keys and not _is_finite(entry["score"]):
        raise ValueError(f"{name} must have a finite number as score, got {entry['score']!r}")


def _check_known(entry: Instance, key: str, known: Mapping[int, object], name: str) -> None:
    if not isinstance(entry[key], Hashable) or entry[key] not in known:
        raise ValueError(
            f"{name} must have a {key} that the annotation file lists, got {entry[key]}"
        )


def load_annotations(json_file: str | Path) -> COCO:
    """Reads annotations in COCO's instances format.

    Raises:
        ValueError: the file is missing or of another format.
    """
    content = _read_json(json_file, "the annotation file")
    api = COCO()
    try:
        api.dataset = {key: content[key] for key in ("images", "categories", "annotations")}
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            api.createIndex()
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the annotation file must be in COCO's instances format, but {json_file} is not: "
            f"{error!r}"
        ) from error
    for key, wanted in _LISTED_KEYS.items():
        for number, entry in enumerate(api.dataset[key]):
            _check_keys(entry, wanted, f"entry {number} of '{key}' in {json_file}")
    for number, annotation in enumerate(api.dataset["annotations"]):
        name = f"annotation {number} of {json_file}"
        _check_entry(annotation, _ANNOTATION_KEYS, name)
        _check_known(annotation, "category_id", api.cats, name)
    return api


def load_results(json_file: str | Path, results_file: str | Path) -> EvaluatedImages:
    """Reads predictions, with or without masks, and the annotations that they belong to.

    Args:
        json_file: annotations in COCO's instances format.
        results_file: list of detections in COCO's results format.

    Raises:
        ValueError: a file is missing or of another format, or the predictions belong to other
            images or categories than the annotations.
    """
    api = load_annotations(json_file)
    results = _read_json(results_file, "the results file")
    if not isinstance(results, list):
        raise ValueError(
            f"the results file must hold a list, but {results_file} holds a "
            f"{type(results).__name__}"
        )
    predictions: dict[int, list[Instance]] = {image: [] for image in api.imgs}
    for number, result in enumerate(results):
        name = f"result {number} of {results_file}"
        _check_entry(result, _RESULT_KEYS, name)
        _check_known(result, "image_id", api.imgs, name)
        _check_known(result, "category_id", api.cats, name)
        predictions[result["image_id"]].append(result)
    return EvaluatedImages(api, predictions)
