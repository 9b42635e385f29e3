"""Annotations, and predictions in COCO's results format, as pycocotools takes them."""

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from vitadapter.data.coco.annotations import CocoData, read_coco, with_masks
from vitadapter.data.coco.json_entries import Findings, Id, checked_at, is_id, read_json
from vitadapter.data.coco.objects import usable_mask
from vitadapter.encoded_masks import EncodedMasks

__all__ = [
    "EvaluatedImages",
    "Instance",
    "coco_api",
    "load_annotations",
    "load_results",
    "read_results",
    "to_results",
]

logger = logging.getLogger(__name__)

# The limit of scores and, in pixels, of boxes. Anything farther away cannot be drawn.
_LARGEST = 1e6
_RESULT_KEYS = {"image_id", "category_id", "bbox", "score"}


class Instance(TypedDict, total=False):
    """An annotation or a prediction in COCO's format."""

    image_id: Id
    category_id: Id
    bbox: Sequence[float]
    segmentation: list[Sequence[float]] | dict[str, object]
    score: float
    iscrowd: int


def coco_api(data: CocoData, *, masks: bool = False) -> COCO:
    """The annotations under new ids, because those of the file may be 0, or occur twice.

    Args:
        data: with a different id for each image.
        masks: whether to leave out annotations without a mask, as training of masks does.

    Raises:
        ValueError: an image has no id, two have the same, or no annotation has a mask.
    """
    data = with_masks(data) if masks else data
    repeated = Counter(record.get("image_id") for record in data.records)
    images = []
    for record in data.records:
        id_ = record.get("image_id")
        if id_ is None or repeated[id_] > 1:
            raise ValueError(
                f"{data.source} must have an image_id for each image to evaluate, but "
                f"{record['file_name']} has none of its own, {id_!r}"
            )
        images.append({**{k: v for k, v in record.items() if k != "annotations"}, "id": id_})
    objects = [(r["image_id"], a) for r in data.records for a in r.get("annotations", [])]
    api = COCO()
    api.dataset = {
        "images": images,
        "categories": list(data.categories),
        "annotations": [
            {
                **annotation,
                "id": number,
                "image_id": image,
                "category_id": data.categories[annotation["category_id"]]["id"],
            }
            for number, (image, annotation) in enumerate(objects, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        api.createIndex()
    return api


def to_results(instances: Instances, image_id: Id | None) -> list[Instance]:
    """Predictions of an image in COCO's results format, with the model's numbers of classes.

    Like Detectron2's `instances_to_coco_json`, which would decode `EncodedMasks` and encode them
    again.

    Args:
        instances: on the CPU.
        image_id: of the image.
    """
    if not (instances.has("pred_masks") and isinstance(instances.pred_masks, EncodedMasks)):
        return instances_to_coco_json(instances, image_id)
    without = Instances(instances.image_size, **instances.get_fields())
    without.remove("pred_masks")
    results = instances_to_coco_json(without, image_id)
    for result, rle in zip(results, instances.pred_masks.rles, strict=True):
        result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    return results


@dataclass(frozen=True)
class EvaluatedImages:
    """Images of a data set with their annotations and predictions."""

    data: CocoData
    api: COCO
    predictions: Mapping[Id, list[Instance]]

    def annotated_ids(self) -> list[Id]:
        """The ids of the images that have annotations, in ascending order."""
        return sorted(i for i in self.api.imgs if self.api.imgToAnns.get(i))


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= _LARGEST  # false for NaN


def _check_result(result: object, api: COCO, name: str, findings: Findings) -> Instance:
    """Refuses what can be neither drawn nor compared; `name` says where the result is from."""
    if not isinstance(result, Mapping) or not set(result) >= _RESULT_KEYS:
        found = sorted(result) if isinstance(result, Mapping) else result
        raise ValueError(f"{name} must be an object with {sorted(_RESULT_KEYS)}, got {found!r:.80}")
    box = result["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        raise ValueError(f"{name} must have a box of 4 finite numbers, got {box!r:.80}")
    if not _is_finite(result["score"]):
        raise ValueError(f"{name} must have a finite number as score, got {result['score']!r:.80}")
    _check_known(result, "image_id", api.imgs, name)
    _check_known(result, "category_id", api.cats, name)
    if "segmentation" not in result:
        return cast(Instance, result)
    image = api.imgs[result["image_id"]]
    size = image["height"], image["width"]
    mask = checked_at(
        name, usable_mask, result["segmentation"], size, lambda kind: findings.add(kind, name)
    )
    if isinstance(mask, list):  # pycocotools takes polygons only of annotations
        mask = mask_util.merge(mask_util.frPyObjects(mask, *size))
    # pycocotools needs a mask for each prediction. An empty one matches nothing.
    return cast(Instance, {**result, "segmentation": mask or _empty_mask(size)})


def _empty_mask(size: tuple[int, int]) -> dict[str, object]:
    return mask_util.frPyObjects({"size": list(size), "counts": [size[0] * size[1]]}, *size)


def _check_known(
    entry: Mapping[str, object], key: str, known: Mapping[Id, object], name: str
) -> None:
    if not is_id(entry[key]) or entry[key] not in known:
        raise ValueError(
            f"{name} must have as {key} one that the annotation file lists, got {entry[key]!r:.80}"
        )


def _existing(path: str | Path, what: str) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"the {what} file must be a json file, but {path} does not exist")
    return path


def load_annotations(json_file: str | Path) -> CocoData:
    """Reads annotations in COCO's instances format or LVIS's.

    Raises:
        ValueError: the file is missing, has the wrong format, or has no annotations.
    """
    data = read_coco(_existing(json_file, "annotation"))
    if not data.has_annotations:
        raise ValueError(f"{data.source} has no annotations")
    return data


def load_results(json_file: str | Path, results_file: str | Path) -> EvaluatedImages:
    """Reads predictions, with or without masks, and the annotations that they belong to.

    Args:
        json_file: annotations in COCO's instances format.
        results_file: list of detections in COCO's results format.

    Raises:
        ValueError: a file is missing or has the wrong format, or predictions belong to images or
            categories that the annotations do not have.
    """
    return read_results(load_annotations(json_file), results_file)


def read_results(data: CocoData, results_file: str | Path) -> EvaluatedImages:
    """Reads predictions, with or without masks.

    Args:
        data: annotations that they belong to.
        results_file: list of detections in COCO's results format.

    Raises:
        ValueError: as `load_results`.
    """
    api = coco_api(data)
    results = read_json(_existing(results_file, "results"))
    if not isinstance(results, list):
        raise ValueError(
            f"the results file must hold a list, but {results_file} holds a "
            f"{type(results).__name__}"
        )
    findings = Findings()
    predictions: dict[Id, list[Instance]] = {image: [] for image in api.imgs}
    for number, result in enumerate(results):
        checked = _check_result(result, api, f"result {number} of {results_file}", findings)
        predictions[checked["image_id"]].append(checked)
    findings.warn(logger, str(results_file))
    return EvaluatedImages(data, api, predictions)
