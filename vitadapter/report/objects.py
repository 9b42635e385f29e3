"""The part of a report on detected objects: boxes, and masks if the model predicts them."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO

from vitadapter.data.coco import read_registered, register_coco
from vitadapter.data.coco.json_entries import Id
from vitadapter.data.coco.results import EvaluatedImages, Instance, coco_api, read_results
from vitadapter.data.image_files import read_record_image, reason
from vitadapter.evaluation.detection_analysis import (
    COLUMNS,
    DetectionFigures,
    evaluate_detections,
    tasks_of,
)
from vitadapter.evaluation.judging import ERRORS, JudgedDetection, JudgedImage, judge_images
from vitadapter.evaluation.operating_point import (
    Pairs,
    ScoreCurves,
    confusions,
    pair_up,
    score_curves,
)
from vitadapter.evaluation.tide import cost_of_errors
from vitadapter.report.pictures import Pictures, outlines
from vitadapter.report.run import Json, Run, check_reproduced, note_renamed, note_unread, plain
from vitadapter.visualization.metrics_file import RunMetrics

__all__ = [
    "CROWD",
    "KINDS",
    "MISSED",
    "NOTHING",
    "describe_objects",
    "read_picture",
    "size_of",
]

KINDS = ("right", *ERRORS[:-1], "crowd")
"""Kinds of detections on the page, by their numbers."""

# States of objects on the page; numbers from 0 are those of the detection that finds the object.
MISSED, CROWD = -1, -3
NOTHING = -1
"""Instead of the number of an object or a detection, where there is none."""
_LEAST_SCORE = 0.05  # of detections in the gallery, unless the best score is below it
_MOST_DETECTIONS = 100  # of an image in the gallery
# Areas in pixels up to which COCO calls objects small and medium.
_AREAS = (32**2, 96**2)


def size_of(area: float) -> int:
    """0, 1 or 2 for what COCO calls small, medium or large."""
    return int(np.searchsorted(_AREAS, area))


def read_picture(
    number: int, record: Mapping[str, object], pictures: Pictures, unread: list[str]
) -> str | None:
    """Copies the image of a record; None if it cannot be read, which `unread` then says."""
    try:
        return pictures.add_image(number, np.ascontiguousarray(read_record_image(record, "RGB")))
    except (OSError, ValueError) as error:
        unread.append(reason(error))
        return None


def _check_names(run: Run, names: Sequence[str]) -> None:
    """Notes classes whose names have changed since the evaluation, which wrote them to a table."""
    table = run.results / "per_class.csv"
    if not table.is_file():
        return
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("class") != "all classes"]
    task = rows[0]["task"] if rows else ""
    before = [str(row["class"]) for row in rows if row["task"] == task]
    note_renamed(run, before, names)


def _table(figures: DetectionFigures, curves: ScoreCurves, best: int) -> Json:
    rows = []
    at_best = curves.figures_at(best)
    detected = curves.right[:, best] + curves.false[:, best]
    for number, (name, count, values) in enumerate(figures.rows()[1:]):
        percents = (100 * x[number] for x in at_best)
        numbers = plain([*(values[c] for c in COLUMNS), *percents], 1)
        rows.append([name, count, int(detected[number]), *numbers])
    columns = ["class", "objects", "detections", *COLUMNS, "precision", "recall", "F1"]
    return {"columns": columns, "rows": rows}


def _score_data(curves: ScoreCurves, best: int) -> Json:
    """Counts instead of figures, so that the page can pool classes."""
    used = np.flatnonzero(curves.objects)
    pooled = [plain(values, 4) for values in curves.figures()]
    return {
        "thresholds": plain(curves.thresholds, 2),
        "best": round(float(curves.thresholds[best]), 2),
        "pooled": dict(zip(("precision", "recall", "F1"), pooled, strict=True)),
        "classes": {
            int(k): {
                "F1": plain(curves.figures(int(k))[2], 3),
                "best": round(float(curves.thresholds[curves.best(int(k))]), 2),
            }
            for k in used
        },
    }


def _precision_data(figures: DetectionFigures) -> Json:
    """Precision at IoU 0.5 by recall, of all classes and of each one that has objects."""
    (at,) = np.flatnonzero(np.isclose(figures.iou_thresholds, 0.5))
    by_class = figures.precision[at, :, :, 0]
    used = [k for k in range(by_class.shape[1]) if (by_class[:, k] > -1).all()]
    return {
        "recall": plain(figures.recall_levels, 2),
        "mean": plain(figures.curve(0.5), 4),
        "classes": {k: plain(by_class[:, k], 3) for k in used},
    }


def _error_data(judged: Sequence[JudgedImage]) -> Json:
    errors = cost_of_errors(judged)
    return {
        "ap": round(errors.ap, 2),
        "rows": [[kind, errors.counts[kind], round(errors.costs[kind], 2)] for kind in ERRORS],
    }


@dataclass(frozen=True)
class _Part:
    """What the page shows of boxes or of masks, and what it is made of."""

    task: str
    data: Json
    judged: list[JudgedImage]
    pairs: list[Pairs]
    api: COCO
    threshold: float
    ap: float


def _part(
    images: EvaluatedImages, detections: Sequence[Instance], task: str, limits: Mapping[str, int]
) -> _Part:
    api = coco_api(images.data, masks=task == "segm")
    figures = evaluate_detections(api, detections, task, **limits)
    judged = judge_images(api, images.predictions, task, **limits)
    numbers = {id_: number for number, id_ in enumerate(sorted(api.cats))}
    curves = score_curves(judged, numbers)
    best = curves.best()
    threshold = float(curves.thresholds[best])
    pairs = [pair_up(image, api, task, threshold) for image in judged]
    cells = [
        [-1 if a is None else numbers[a], -1 if b is None else numbers[b], count]
        for (a, b), count in confusions(pairs).items()
    ]
    data: Json = {
        "means": [[name, *plain([v], 4)] for name, v in figures.summary().items()],
        "table": _table(figures, curves, best),
        "precision": _precision_data(figures),
        "scores": _score_data(curves, best),
        "confusion": {"threshold": round(threshold, 2), "unit": "objects", "cells": cells},
        "errors": _error_data(judged),
    }
    return _Part(task, data, judged, pairs, api, threshold, figures.summary()["AP"])


def _box(instance: Instance) -> list[float]:
    return [round(float(value), 1) for value in instance["bbox"]]


def _area(instance: Mapping[str, object], box: Sequence[float]) -> float:
    area = instance.get("area")
    return float(area) if isinstance(area, int | float) else box[2] * box[3]


class _Gallery:
    """Writes images with their objects and detections.

    Args:
        parts: of boxes, and of masks if the model predicts them; the last one is shown.
        pictures: writes the images.
        image_root: folder that their names are shown relative to, if it is known.

    Attributes:
        least_score: of the detections that it has.
    """

    def __init__(self, parts: Sequence[_Part], pictures: Pictures, image_root: Path | None) -> None:
        self._parts = parts
        self._api = parts[-1].api
        self._pictures = pictures
        self._root = image_root
        self._with_masks = parts[-1].task == "segm"
        self.least_score = min([_LEAST_SCORE, *(part.threshold for part in parts)])
        self._numbers: dict[Id, int] = {id_: n for n, id_ in enumerate(sorted(self._api.cats))}
        self.unread: list[str] = []

    def images(self) -> list[Json]:
        """What the page knows of all images."""
        return [self._add(number) for number in range(len(self._parts[-1].judged))]

    def _outlines(self, instance: Instance) -> list[list[int]]:
        return outlines(self._api.annToMask(instance)) if "segmentation" in instance else []

    def _pairs(self, number: int, shown: Sequence[JudgedDetection]) -> Json:
        """By task, the pairs of the confusion matrix: numbers of an object and a detection."""
        places = {id(x.instance): place for place, x in enumerate(shown)}
        pairs: Json = {}
        for part in self._parts:
            # Of boxes, there are also objects without a mask, which the page does not have.
            shown_too = [
                there
                for there in part.judged[number].objects
                if not self._with_masks or "segmentation" in there.instance
            ]
            numbers = {id(there): n for n, there in enumerate(shown_too)}
            pairs[part.task] = [
                n
                for there, x in part.pairs[number]
                for n in (
                    NOTHING if there is None else numbers.get(id(there), NOTHING),
                    NOTHING if x is None else places.get(id(x.instance), len(shown)),
                )
            ]
        return pairs

    def _add(self, number: int) -> Json:
        """What the page knows of an image; all boxes are x, y, width, height in pixels."""
        image = self._parts[-1].judged[number]
        record = self._api.imgs[image.image]
        path = Path(str(record["file_name"]))
        is_below = self._root is not None and path.is_relative_to(self._root)
        shown = [x for x in image.detections if x.score >= self.least_score][:_MOST_DETECTIONS]
        places = {id(x): place for place, x in enumerate(shown)}
        numbers = {id(there): number for number, there in enumerate(image.objects)}
        detections: list[float] = []
        for x in shown:
            box = _box(x.instance)
            kind = KINDS[-1] if x.error and x.in_crowd else x.error or KINDS[0]
            # Of masks, too, the size is that of the box: to decode all masks would take long.
            detections += [self._numbers[x.category], round(x.score, 4), *box, KINDS.index(kind)]
            about = NOTHING if x.about is None else numbers[id(x.about)]
            detections += [size_of(box[2] * box[3]), about]
        objects: list[float] = []
        for there in image.objects:
            state = MISSED
            if there.found_by is not None:
                state = places.get(id(there.found_by), len(shown))
            box = _box(there.instance)
            objects += [self._numbers[there.category], *box, state]
            objects.append(size_of(_area(there.instance, box)))
        for crowd in image.crowds:
            box = _box(crowd)
            objects += [self._numbers[crowd["category_id"]], *box, CROWD]
            objects.append(size_of(_area(crowd, box)))
        entry: Json = {
            "name": path.relative_to(str(self._root)).as_posix() if is_below else path.name,
            "size": [record["width"], record["height"]],
            "detections": detections,
            "objects": objects,
            "pairs": self._pairs(number, shown),
            "file": read_picture(number, record, self._pictures, self.unread),
        }
        if self._with_masks:
            found = [self._outlines(x.instance) for x in shown]
            truth = [x.instance for x in image.objects] + image.crowds
            text = json.dumps([found, [self._outlines(x) for x in truth]], separators=(",", ":"))
            entry["masks"] = self._pictures.add_outlines(number, f"showMasks({number}, {text});\n")
        return entry


def describe_objects(
    run: Run, arguments: Json, metrics: RunMetrics | None, pictures: Pictures
) -> tuple[Json, Path]:
    """What the page shows of a detector's evaluation.

    Args:
        run: whose notes are added to.
        arguments: of its `coco_evaluator`.
        metrics: of the run.
        pictures: writes the images of the gallery.

    Returns:
        The data of the page, and the file with the results.

    Raises:
        ValueError: annotations or results are missing, broken, or do not belong together.
    """
    results = run.result("coco_instances_results.json")
    files = {key: arguments.get(key) for key in ("json_file", "image_root")}
    given = {key: None if value is None else str(value) for key, value in files.items()}
    registered = register_coco(str(arguments["name"]), **given, role="test")
    data = read_registered(registered, ground_truth=True)
    if not data.has_annotations:
        raise ValueError(f"{data.source} has no annotations that the results could be compared to")
    try:
        images = read_results(data, results)
    except ValueError as error:
        raise ValueError(
            f"{error}. The results must be of the data set {data.source}, and complete: if it has "
            "changed, or the evaluation was stopped, evaluate again; if it has moved, add "
            "dataset.test.json_file=... and dataset.test.image_root=..."
        ) from error
    detections = [x for by_image in images.predictions.values() for x in by_image]
    if not detections:
        run.notes.append("The model detects nothing at all: each object is missed")
    _check_names(run, data.class_names)
    content: Json = {"kind": "objects", "classes": data.class_names, "kinds": KINDS}
    key = "max_dets_per_image"
    limits = {key: int(str(arguments[key]))} if key in arguments else {}
    parts = [_part(images, detections, task, limits) for task in tasks_of(data, detections)]
    for part in parts:
        check_reproduced(run, metrics, f"{part.task}/AP", part.ap)
    gallery = _Gallery(parts, pictures, MetadataCatalog.get(registered).get("image_root"))
    content |= {"parts": {part.task: part.data for part in parts}, "judgedBy": parts[-1].task}
    content |= {"threshold": round(parts[-1].threshold, 2), "leastScore": gallery.least_score}
    content["images"] = gallery.images()
    note_unread(run, gallery.unread)
    return content, results
