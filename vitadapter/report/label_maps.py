"""The part of a report on label maps: semantic segmentation."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib.colors import to_rgb

from vitadapter.data.dataset_source import Record, first_few
from vitadapter.data.image_files import read_image
from vitadapter.data.sem_seg import LabelReader, register_sem_seg
from vitadapter.report.pictures import Pictures
from vitadapter.report.run import (
    Json,
    Run,
    check_reproduced,
    note_renamed,
    plain,
    read_each,
    reading_results,
)
from vitadapter.visualization.metrics_file import RunMetrics
from vitadapter.visualization.overlays import Palette
from vitadapter.visualization.sem_seg_gallery import (
    PredictedSegment,
    predicted_labels,
    read_predictions,
)
from vitadapter.visualization.style import COLORS

__all__ = ["describe_label_maps"]

_MOST_PAIRS = 12  # of an image: the confusions with the most pixels
_RIGHT, _WRONG, _IGNORED = range(3)
# The orange of figures for wrong pixels; a grey veil over those that do not count.
_WRONG_COLOR = [round(255 * part) for part in to_rgb(COLORS[1])]
_ERROR_COLORS = np.array([(0, 0, 0, 0), (*_WRONG_COLOR, 255), (128, 128, 128, 120)], np.uint8)
_NO_CLASS = -1

Pairs = Counter[tuple[int, int]]


def _count_pairs(truth: np.ndarray, predicted: np.ndarray, counted: np.ndarray) -> Pairs:
    """Pixels by true and predicted class, without those that do not count."""
    pairs = np.stack([truth[counted], predicted[counted]], axis=1)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    return Counter({(a, b): n for (a, b), n in zip(found.tolist(), counts.tolist(), strict=True)})


def _by_record(
    records: Sequence[Record], segments: dict[str, list[PredictedSegment]], results: Path
) -> list[list[PredictedSegment] | None]:
    """The prediction of each image, by its path, or by its name if the images have moved."""
    found = [segments.get(str(record["file_name"])) for record in records]
    if any(each is not None for each in found):
        return found
    names = Counter(Path(name).name for name in segments)
    by_name = {Path(name).name: value for name, value in segments.items()}
    moved = [Path(str(record["file_name"])).name for record in records]
    found = [by_name.get(name) if names[name] == 1 else None for name in moved]
    if not any(each is not None for each in found) and segments:
        raise ValueError(
            f"{results} has predictions for {first_few(list(segments))}, and none for the images "
            f"of the data set, such as {first_few(moved)}: evaluate again, or set "
            "dataset.test.image_root=... and dataset.test.label_root=... to its data"
        )
    return found


def _check_names(run: Run, names: Sequence[str]) -> None:
    """Notes classes whose names have changed since the evaluation."""
    path = run.results / "confusion_matrix.json"
    if not path.is_file():
        return
    try:
        before = list(map(str, json.loads(path.read_text(encoding="utf-8"))["classes"]))
    except (KeyError, TypeError, ValueError) as error:
        run.notes.append(f"{path} is broken ({error!r}); the confusions were counted again")
        return
    note_renamed(run, before, names)


def _figures(pairs: Pairs, names: Sequence[str]) -> tuple[list[list[object]], dict[str, float]]:
    """Rows of the table and the means, in percent."""
    count = len(names)
    right, truth, predicted = (np.zeros(count) for _ in range(3))
    for (a, b), pixels in pairs.items():
        truth[a] += pixels
        if b != _NO_CLASS:
            predicted[b] += pixels
        if a == b:
            right[a] += pixels
    there = truth > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.where(there, 100 * right / (truth + predicted - right), np.nan)
        recall = np.where(there, 100 * right / truth, np.nan)
        precision = np.where(predicted > 0, 100 * right / predicted, np.nan)
    total = truth.sum() or np.nan
    rows: list[list[object]] = [
        [name, int(truth[k]), *plain([100 * truth[k] / total, iou[k], recall[k], precision[k]], 2)]
        for k, name in enumerate(names)
    ]
    means = {
        "mIoU": float(iou[there].mean()) if there.any() else np.nan,
        "fwIoU": float(np.nansum(iou * truth) / total),
        "mACC": float(recall[there].mean()) if there.any() else np.nan,
        "pACC": float(100 * right.sum() / total),
    }
    return rows, means


class _Maps:
    """Writes images with their maps of truth, prediction and errors."""

    def __init__(self, read_label: LabelReader, names: Sequence[str], pictures: Pictures) -> None:
        self._read_label = read_label
        self._pictures = pictures
        colors = np.full((len(names) + 1, 4), 255, np.uint8)
        colors[:-1, :3] = Palette(names).table(len(names))
        colors[-1] = 0  # pixels without a class
        self._colors = colors
        self.pairs: Pairs = Counter()

    def add(self, number: int, record: Record, segments: Sequence[PredictedSegment]) -> Json:
        """What the page knows of an image."""
        image = np.ascontiguousarray(read_image(str(record["file_name"]), "RGB"))
        truth = self._read_label.of_record(record, image)
        ignored = self._read_label.ignore_label
        shape = (image.shape[0], image.shape[1])
        predicted = predicted_labels(segments, shape, ignored)
        last = len(self._colors) - 1
        if predicted[predicted != ignored].max(initial=0) >= last:
            raise ValueError(
                f"the prediction for {record['file_name']} has the class {predicted.max()}, but "
                f"there are only {last} classes"
            )
        counted = truth != ignored
        predicted = np.where(predicted == ignored, _NO_CLASS, predicted)
        pairs = _count_pairs(truth, predicted, counted)
        self.pairs += pairs
        errors = np.where(counted, np.where(truth == predicted, _RIGHT, _WRONG), _IGNORED)
        wrong = Counter({pair: n for pair, n in pairs.items() if pair[0] != pair[1]})
        maps = (
            ("truth", np.where(counted, truth, last), self._colors),
            ("predicted", np.where(predicted == _NO_CLASS, last, predicted), self._colors),
            ("errors", errors, _ERROR_COLORS),
        )
        return {
            "name": Path(str(record["file_name"])).name,
            "size": [image.shape[1], image.shape[0]],
            "file": self._pictures.add_image(number, image),
            **{kind: self._pictures.add_map(kind, number, *rest) for kind, *rest in maps},
            "pixels": pairs.total(),
            "wrong": wrong.total(),
            "pairs": [v for pair, n in wrong.most_common(_MOST_PAIRS) for v in (*pair, n)],
            "classes": sorted({a for a, _ in pairs}),
            "predictedClasses": sorted({b for _, b in pairs} - {_NO_CLASS}),
        }


def describe_label_maps(
    run: Run, arguments: Json, metrics: RunMetrics | None, pictures: Pictures
) -> tuple[Json, Path]:
    """What the page shows of a semantic segmenter's evaluation.

    Args:
        run: whose notes are added to.
        arguments: of its `sem_seg_evaluator`.
        metrics: of the run.
        pictures: writes images and maps.

    Returns:
        The data of the page, and the file with the results.

    Raises:
        ValueError: labels or results are missing, broken, or do not belong together.
    """
    results = run.result("sem_seg_predictions.json")
    settings = {k: v for k, v in arguments.items() if k not in ("output_dir", "boundary_iou")}
    registered = register_sem_seg(**settings, role="test")  # type: ignore[arg-type]
    metadata = MetadataCatalog.get(registered)
    names: list[str] = metadata.stuff_classes
    reader = LabelReader(len(names), metadata.ignore_label, metadata.reduce_zero_label)
    _check_names(run, names)
    with reading_results():
        segments = read_predictions(results)
    records: list[Record] = DatasetCatalog.get(registered)
    predictions = _by_record(records, segments, results)
    absent = sum(each is None for each in predictions)
    if absent:
        run.notes.append(f"{absent} of {len(records)} images have no prediction and are left out")
    maps = _Maps(reader, names, pictures)
    pairs = [(r, found) for r, found in zip(records, predictions, strict=True) if found is not None]
    images = read_each(run, pairs, lambda number, pair: maps.add(number, *pair), [])
    rows, means = _figures(maps.pairs, names)
    check_reproduced(run, metrics, "sem_seg/mIoU", means["mIoU"])
    columns = ["class", "pixels", "% of pixels", "IoU", "recall", "precision"]
    part = {
        "means": [[name, *plain([value], 4)] for name, value in means.items()],
        "table": {"columns": columns, "rows": rows},
        "confusion": {"unit": "pixels", "cells": [[a, b, n] for (a, b), n in maps.pairs.items()]},
    }
    content: Json = {"kind": "labels", "classes": names, "parts": {"sem_seg": part}}
    content["colors"] = Palette(names).table(len(names)).tolist()
    content["images"] = images
    return content, results
