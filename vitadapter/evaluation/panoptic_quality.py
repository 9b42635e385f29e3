"""Panoptic quality (arXiv 1801.00868, section 4), with the details of COCO's own program."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vitadapter.data.dataset_source import Segment
from vitadapter.data.panoptic.maps import VOID
from vitadapter.visualization.markdown import figure_cell, markdown_table

__all__ = [
    "Matching",
    "PanopticQuality",
    "average_quality",
    "count_matches",
    "counts_of",
    "format_table",
    "match_segments",
    "quality_of",
]

_MATCHED, _FALSE_POSITIVE, _FALSE_NEGATIVE, _IOU = range(4)
# Larger than any id.
_ID_LIMIT = 1 << 32


class PanopticQuality(NamedTuple):
    """Qualities in [0, 1], and the number of classes over which they are averaged.

    Attributes:
        pq: panoptic quality, which is `sq * rq` for one class.
        sq: segmentation quality, the mean IoU of matched segments.
        rq: recognition quality, the F1 score of the matching.
        num_classes: classes that occur in truth or prediction; no average includes others.
    """

    pq: float
    sq: float
    rq: float
    num_classes: int


class Matching(NamedTuple):
    """The segments of one image.

    Attributes:
        matches: true id, predicted id and IoU of each pair of the same class.
        confused: the same of pairs of different classes, whose segments are missed and false.
        missed: ids of true segments without a partner, without crowds.
        false: ids of predicted segments without a partner that count as false positives.
    """

    matches: list[tuple[int, int, float]]
    confused: list[tuple[int, int, float]]
    missed: list[int]
    false: list[int]


def _areas(ids: np.ndarray) -> dict[int, int]:
    found, counts = np.unique(ids, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def match_segments(
    truth: np.ndarray,
    truth_segments: Sequence[Segment],
    predicted: np.ndarray,
    predicted_segments: Sequence[Segment],
    num_classes: int,
) -> Matching:
    """Matches the segments of one image: those of the same class with an IoU over one half.

    No segment can have two such partners, because segments do not overlap. As in COCO's program,

    - pixels that are void in the truth are not part of a union;
    - a crowd in the truth can be neither missed nor matched;
    - a predicted segment without a partner is not a false positive if more than half of it is void
      or a crowd of its class; if there are several such crowds, the last one counts.

    Args:
        truth: (H, W) ids of segments, 0 for void.
        truth_segments: their `id`, `category_id` and `iscrowd`.
        predicted: (H, W) ids of segments, 0 for none.
        predicted_segments: their `id` and `category_id`.
        num_classes: K; categories are 0 .. K - 1.

    Raises:
        ValueError: the maps differ in size, or predicted segments do not agree with their map.
    """
    _check_prediction(truth, predicted, predicted_segments, num_classes)
    areas = _areas(truth), _areas(predicted)
    overlaps = _overlaps(truth, predicted)
    true_classes = {s["id"]: s["category_id"] for s in truth_segments}
    predicted_classes = {s["id"]: s["category_id"] for s in predicted_segments}
    crowds = {s["id"]: s["category_id"] for s in truth_segments if s.get("iscrowd", 0)}

    found = Matching([], [], [], [])
    missed, unmatched = set(true_classes) - set(crowds), set(predicted_classes)
    for (true_id, predicted_id), overlap in overlaps.items():
        if true_id not in missed or predicted_id not in predicted_classes:
            continue
        void = overlaps.get((VOID, predicted_id), 0)
        iou = overlap / (areas[0][true_id] + areas[1][predicted_id] - overlap - void)
        if iou <= 0.5:
            continue
        if predicted_classes[predicted_id] != true_classes[true_id]:
            found.confused.append((true_id, predicted_id, iou))
            continue
        found.matches.append((true_id, predicted_id, iou))
        missed.remove(true_id)
        unmatched.remove(predicted_id)
    found.missed.extend(sorted(missed))
    crowd_of = {category: crowd for crowd, category in crowds.items()}
    for predicted_id in sorted(unmatched):
        category = predicted_classes[predicted_id]
        ignored = overlaps.get((VOID, predicted_id), 0)
        if category in crowd_of:
            ignored += overlaps.get((crowd_of[category], predicted_id), 0)
        if ignored / areas[1][predicted_id] <= 0.5:
            found.false.append(predicted_id)
    return found


def count_matches(
    truth: np.ndarray,
    truth_segments: Sequence[Segment],
    predicted: np.ndarray,
    predicted_segments: Sequence[Segment],
    num_classes: int,
) -> np.ndarray:
    """Counts what `match_segments` finds in one image.

    Args:
        truth, truth_segments, predicted, predicted_segments, num_classes: as in `match_segments`.

    Returns:
        (K, 4), for each class the matches, false positives, false negatives, and the
        sum of the matches' IoUs.

    Raises:
        ValueError: as `match_segments`.
    """
    found = match_segments(truth, truth_segments, predicted, predicted_segments, num_classes)
    return counts_of(found, truth_segments, predicted_segments, num_classes)


def counts_of(
    found: Matching,
    truth_segments: Sequence[Segment],
    predicted_segments: Sequence[Segment],
    num_classes: int,
) -> np.ndarray:
    """What `count_matches` returns, of an image that is matched already.

    Args:
        found: by `match_segments`.
        truth_segments, predicted_segments, num_classes: as in `match_segments`.
    """
    true_classes = {s["id"]: s["category_id"] for s in truth_segments}
    predicted_classes = {s["id"]: s["category_id"] for s in predicted_segments}
    counts = np.zeros((num_classes, 4))
    for true_id, _, iou in found.matches:
        counts[true_classes[true_id], _MATCHED] += 1
        counts[true_classes[true_id], _IOU] += iou
    for true_id in found.missed:
        counts[true_classes[true_id], _FALSE_NEGATIVE] += 1
    for predicted_id in found.false:
        counts[predicted_classes[predicted_id], _FALSE_POSITIVE] += 1
    return counts


def _overlaps(truth: np.ndarray, predicted: np.ndarray) -> dict[tuple[int, int], int]:
    """Numbers of pixels that a true and a predicted segment, or void, have in common."""
    pairs = _areas(truth.astype(np.int64) * _ID_LIMIT + predicted.astype(np.int64))
    return {divmod(pair, _ID_LIMIT): count for pair, count in pairs.items()}


def _check_prediction(
    truth: np.ndarray,
    predicted: np.ndarray,
    segments: Sequence[Segment],
    num_classes: int,
) -> None:
    if predicted.shape != truth.shape:
        raise ValueError(
            f"a panoptic map must have the truth's (height, width) {truth.shape}, "
            f"got {predicted.shape}"
        )
    listed = [segment["id"] for segment in segments]
    shown = set(np.unique(predicted).tolist()) - {VOID}
    if len(set(listed)) < len(listed) or set(listed) != shown:
        raise ValueError(
            f"segments_info must list each segment of the map once, got the ids {sorted(listed)} "
            f"for a map with {sorted(shown)}"
        )
    classes = {segment["category_id"] for segment in segments}
    if not classes <= set(range(num_classes)):
        raise ValueError(
            f"category_id of a segment must lie in [0, {num_classes}), got {sorted(classes)}"
        )


def quality_of(counts: np.ndarray) -> np.ndarray:
    """Computes the qualities of each class.

    Args:
        counts: (K, 4), the sum of what `count_matches` returns for each image.

    Returns:
        (K, 3) PQ, SQ and RQ in [0, 1]; NaN for a class that does not occur.
    """
    matched, iou = counts[:, _MATCHED], counts[:, _IOU]
    total = matched + (counts[:, _FALSE_POSITIVE] + counts[:, _FALSE_NEGATIVE]) / 2
    occurs = total > 0
    qualities = np.full((len(counts), 3), np.nan)
    qualities[occurs, 0] = iou[occurs] / total[occurs]
    qualities[occurs, 1] = iou[occurs] / np.maximum(matched[occurs], 1)
    qualities[occurs, 2] = matched[occurs] / total[occurs]
    return qualities


def average_quality(qualities: np.ndarray) -> PanopticQuality | None:
    """The mean over the classes that occur; None if none does.

    Args:
        qualities: (K, 3), those of the classes to average.
    """
    occurring = qualities[~np.isnan(qualities).any(axis=1)]
    if len(occurring) == 0:
        return None
    pq, sq, rq = occurring.mean(axis=0).tolist()
    return PanopticQuality(pq, sq, rq, len(occurring))


def _percent(values: Sequence[float]) -> list[str]:
    return [figure_cell(100 * value, 2) for value in values]


def format_table(class_names: Sequence[str], num_things: int, counts: np.ndarray) -> str:
    """Formats averages and the figures of each class as Markdown tables.

    Args:
        class_names: K names, things first.
        num_things: number of things.
        counts: (K, 4), see `quality_of`.
    """
    qualities = quality_of(counts)
    summary = [["", "PQ", "SQ", "RQ", "classes"]]
    for title, group in (
        ("all", qualities),
        ("things", qualities[:num_things]),
        ("stuff", qualities[num_things:]),
    ):
        average = average_quality(group)
        cells = ["-", "-", "-", "0"]
        if average is not None:
            cells = [*_percent(average[:3]), str(average.num_classes)]
        summary.append([title, *cells])
    rows = [["class", "PQ", "SQ", "RQ", "matched", "false", "missed"]]
    for name, quality, count in zip(class_names, qualities, counts, strict=True):
        numbers = [str(int(number)) for number in count[:3]]
        rows.append([name, *_percent(quality), *numbers])
    return f"{markdown_table(summary)}\n\n{markdown_table(rows)}"
