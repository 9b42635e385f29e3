"""The part of a report on panoptic segmentation: its segments, as objects with outlines."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from vitadapter.data.coco.json_entries import read_json
from vitadapter.data.dataset_source import Record, Segment, first_few
from vitadapter.data.panoptic import register_panoptic
from vitadapter.data.panoptic.maps import read_panoptic_png, rgb_to_id
from vitadapter.evaluation.panoptic_quality import (
    Matching,
    average_quality,
    counts_of,
    match_segments,
    quality_of,
)
from vitadapter.report.objects import CROWD, MISSED, NOTHING, read_picture, size_of
from vitadapter.report.pictures import Pictures, outlines
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

__all__ = ["describe_segments"]

_KINDS = ("right", "cls", "bkg", "ignored")
"""Kinds of predicted segments on the page, by their numbers."""


def _box(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


class _Segments:
    """Matches and writes the segments of images."""

    def __init__(self, num_classes: int, pictures: Pictures) -> None:
        self._num_classes = num_classes
        self._pictures = pictures
        self.counts = np.zeros((num_classes, 4))
        self.pairs: Counter[tuple[int, int]] = Counter()
        self.unread: list[str] = []

    def _pairs(
        self, found: Matching, truth: list[Segment], predicted: list[Segment]
    ) -> list[tuple[int | None, int | None]]:
        """Counts the pairs of true and predicted segments, and returns their ids."""
        self.counts += counts_of(found, truth, predicted, self._num_classes)
        pairs: list[tuple[int | None, int | None]] = [
            (true_id, id_) for true_id, id_, _ in (*found.matches, *found.confused)
        ]
        pairs += [(id_, None) for id_ in {*found.missed} - {pair[0] for pair in found.confused}]
        pairs += [(None, id_) for id_ in {*found.false} - {pair[1] for pair in found.confused}]
        true_class = {s["id"]: s["category_id"] for s in truth} | {None: NOTHING}
        predicted_class = {s["id"]: s["category_id"] for s in predicted} | {None: NOTHING}
        self.pairs.update((true_class[a], predicted_class[b]) for a, b in pairs)
        return pairs

    def add(
        self, number: int, record: Record, predicted_file: Path, segments: list[Segment]
    ) -> Json:
        """What the page knows of an image; all boxes are x, y, width, height in pixels."""
        true_ids = rgb_to_id(read_panoptic_png(str(record["pan_seg_file_name"])))
        ids = rgb_to_id(read_panoptic_png(str(predicted_file)))
        truth = record["segments_info"]
        found = match_segments(true_ids, truth, ids, segments, self._num_classes)
        pairs = self._pairs(found, truth, segments)
        kinds = {pair[1]: _KINDS.index("right") for pair in found.matches}
        kinds |= {pair[1]: _KINDS.index("cls") for pair in found.confused}
        false = _KINDS.index("bkg")
        kinds |= {id_: kinds.get(id_, false) for id_ in found.false}
        order: dict[int | None, int] = {
            segment["id"]: place for place, segment in enumerate(segments)
        }
        states = {pair[0]: order[pair[1]] for pair in found.matches}
        there = [s for s in truth if (true_ids == s["id"]).any()]
        numbers: dict[int | None, int] = {
            segment["id"]: number for number, segment in enumerate(there)
        }
        about = {pair[1]: numbers[pair[0]] for pair in found.confused}
        drawn: list[list[list[list[int]]]] = [[], []]
        detections: list[float] = []
        for segment in segments:
            mask = ids == segment["id"]
            kind = kinds.get(segment["id"], _KINDS.index("ignored"))
            detections += [segment["category_id"], 1, *_box(mask), kind, size_of(mask.sum())]
            detections.append(about.get(segment["id"], NOTHING))
            drawn[0].append(outlines(mask))
        objects: list[float] = []
        for segment in there:
            mask = true_ids == segment["id"]
            state = CROWD if segment.get("iscrowd", 0) else states.get(segment["id"], MISSED)
            objects += [segment["category_id"], *_box(mask), state, size_of(mask.sum())]
            drawn[1].append(outlines(mask))
        text = f"showMasks({number}, {json.dumps(drawn, separators=(',', ':'))});\n"
        return {
            "name": Path(str(record["file_name"])).name,
            "size": [ids.shape[1], ids.shape[0]],
            "detections": detections,
            "objects": objects,
            "pairs": {
                "panoptic": [
                    n for a, b in pairs for n in (numbers.get(a, NOTHING), order.get(b, NOTHING))
                ]
            },
            "masks": self._pictures.add_outlines(number, text),
            "file": read_picture(number, record, self._pictures, self.unread),
        }


def _predictions(
    path: Path, classes: Mapping[object, int]
) -> tuple[dict[object, tuple[str, list[Segment]]], dict[int, str]]:
    """File of the map and segments, with class numbers, of each image id; the classes' names."""
    with reading_results():
        content = read_json(str(path))
    try:
        found = {}
        for entry in content["annotations"]:  # type: ignore[index, call-overload]
            segments: list[Segment] = [
                {"id": s["id"], "category_id": classes[s["category_id"]]}
                for s in entry["segments_info"]
            ]
            found[entry["image_id"]] = (str(entry["file_name"]), segments)
        categories = content.get("categories", ())  # type: ignore[attr-defined]
        names = {classes[entry["id"]]: str(entry["name"]) for entry in categories}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must hold panoptic predictions of this data set, got {error!r}: evaluate again"
        ) from error
    return found, names


def _table(names: Sequence[str], counts: np.ndarray) -> Json:
    qualities = 100 * quality_of(counts)
    rows = [
        [name, int(count[0] + count[2]), *plain(quality, 2), *(int(n) for n in count[:3])]
        for name, quality, count in zip(names, qualities, counts, strict=True)
    ]
    columns = ["class", "segments", "PQ", "SQ", "RQ", "matched", "false", "missed"]
    return {"columns": columns, "rows": rows}


def _means(counts: np.ndarray, num_things: int) -> list[list[object]]:
    qualities = quality_of(counts)
    rows: list[list[object]] = []
    for suffix, group in (
        ("", qualities),
        (" of things", qualities[:num_things]),
        (" of stuff", qualities[num_things:]),
    ):
        average = average_quality(group)
        names = ("PQ", "SQ", "RQ") if not suffix else ("PQ",)
        for name, value in zip(names, average or (np.nan,) * 3, strict=False):
            rows.append([name + suffix, *plain([100 * value], 4)])
    return rows


def describe_segments(
    run: Run, arguments: Json, metrics: RunMetrics | None, pictures: Pictures
) -> tuple[Json, Path]:
    """What the page shows of a panoptic segmenter's evaluation.

    Args:
        run: whose notes are added to.
        arguments: of its `panoptic_evaluator`.
        metrics: of the run.
        pictures: writes images and outlines.

    Returns:
        The data of the page, and the file with the results.

    Raises:
        ValueError: annotations or results are missing, broken, or do not belong together.
    """
    results = run.result("panoptic_predictions.json")
    settings = {k: v for k, v in arguments.items() if k not in ("output_dir", "max_dets_per_image")}
    registered = register_panoptic(**settings, role="test")  # type: ignore[arg-type]
    metadata = MetadataCatalog.get(registered)
    names: list[str] = metadata.stuff_classes
    classes = (
        metadata.thing_dataset_id_to_contiguous_id | metadata.stuff_dataset_id_to_contiguous_id
    )
    predictions, before = _predictions(results, classes)
    if before:  # earlier versions wrote none
        note_renamed(run, [before[k] for k in sorted(before)], names)
    records: list[Record] = DatasetCatalog.get(registered)
    evaluated = [record for record in records if record["image_id"] in predictions]
    if predictions and not evaluated:
        raise ValueError(
            f"{results} has predictions for the images {first_few(list(predictions))}, and none "
            "for those of the data set: evaluate again"
        )
    if len(evaluated) < len(records):
        left_out = len(records) - len(evaluated)
        run.notes.append(f"{left_out} of {len(records)} images have no prediction and are left out")
    segments = _Segments(len(names), pictures)

    def add(number: int, record: Record) -> Json:
        name, found = predictions[record["image_id"]]
        path = results.parent / "panoptic_predictions" / name
        return segments.add(number, record, path, found)

    images = read_each(run, evaluated, add, segments.unread)
    means = _means(segments.counts, len(metadata.thing_classes))
    if images and means[0][1] is not None:
        check_reproduced(run, metrics, "panoptic_seg/PQ", float(str(means[0][1])))
    part = {
        "means": means,
        "table": _table(names, segments.counts),
        "confusion": {
            "unit": "segments",
            "cells": [[a, b, n] for (a, b), n in segments.pairs.items()],
        },
    }
    content: Json = {"kind": "objects", "classes": names, "kinds": _KINDS, "threshold": 0}
    content |= {"parts": {"panoptic": part}, "judgedBy": "panoptic", "images": images}
    return content, results
