"""TIDE: what each kind of error costs a detector (Bolya et al., arXiv 2008.08115; figure 6).

Figures agree with those of `tidecv`, the authors' package, except that the mean is taken over the
classes that have objects, as in COCO's AP. (It takes the predicted ones, too.)
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from vitadapter.data.coco.json_entries import Id
from vitadapter.data.coco.results import EvaluatedImages, Instance, coco_api, load_results
from vitadapter.evaluation.detection_analysis import check_arguments, tasks_of
from vitadapter.visualization.figures import plot_errors
from vitadapter.visualization.markdown import markdown_table

__all__ = ["ERRORS", "SPECIAL_ERRORS", "DetectionErrors", "analyze_errors", "find_errors"]

ERRORS = ("cls", "loc", "both", "dupe", "bkg", "miss")
"""Each false detection and each missed object is one of these:

- cls: localised correctly but of the wrong class;
- loc: of the right class but localised wrongly;
- both: of the wrong class and localised wrongly;
- dupe: right if there were no detection of the same object with a higher score;
- bkg: background;
- miss: an object that no detection would find if it were corrected.
"""
SPECIAL_ERRORS = ("FP", "FN")
"""All false detections, and all objects that are not found: these overlap with the kinds above."""

_IOU = 0.5  # of a correct detection
_BACKGROUND = 0.1  # the largest IoU of a detection of background


@dataclass(frozen=True)
class DetectionErrors:
    """The errors of one model in one task.

    Attributes:
        ap: AP at an IoU of 0.5, in percent.
        costs: by how much `ap` would rise if all errors of a kind were corrected, for each of
            `ERRORS` and `SPECIAL_ERRORS`.
        counts: the number of errors of each kind.
    """

    ap: float
    costs: dict[str, float]
    counts: dict[str, int]


@dataclass(slots=True, eq=False)
class _Object:
    category: Id
    found: bool = False
    # Of the wrong detections that would find it if they were corrected, the one with the best score
    best: "_Detection | None" = None


@dataclass(slots=True, eq=False)
class _Detection:
    category: Id
    score: float
    in_crowd: bool = False  # so it does not count, but as with `tidecv`, it can be corrected
    error: str | None = None
    target: _Object | None = None


def _regions(instances: Iterable[Instance], task: str, api: COCO) -> list[object]:
    """Boxes, or masks as RLE."""
    return [x["bbox"] if task == "bbox" else api.annToRLE(x) for x in instances]


def _ious(detections: list[object], objects: list[object], crowds: bool) -> np.ndarray:
    """IoU (D, N); of crowds, the share of the detection that is inside."""
    if not detections or not objects:
        return np.zeros((len(detections), len(objects)))
    return np.asarray(mask_util.iou(detections, objects, [crowds] * len(objects)))


def _same_class(detections: Sequence[Instance], objects: Sequence[Instance]) -> np.ndarray:
    columns = [np.array([x["category_id"] for x in group]) for group in (detections, objects)]
    return columns[0][:, None] == columns[1]


def _counted(detections: Sequence[Instance], max_dets_per_image: int) -> list[Instance]:
    """The detections of an image that count, best score first."""
    seen: Counter[Id] = Counter()
    counted = []
    for found in sorted(detections, key=lambda x: -x["score"]):
        seen[found["category_id"]] += 1
        if seen[found["category_id"]] <= max_dets_per_image:
            counted.append(found)
    return counted


def _match(detections: list[_Detection], objects: list[_Object], ious: np.ndarray) -> np.ndarray:
    """Marks the objects that are found. Returns for each detection whether it is correct (D,).

    Args:
        detections: D, best score first.
        objects: N.
        ious: (D, N), 0 for objects of another class.
    """
    free = ious.copy()
    correct = np.zeros(len(detections), dtype=bool)
    for index in range(len(detections) if objects else 0):
        nearest = free[index].argmax()
        if free[index, nearest] >= _IOU:
            correct[index] = objects[nearest].found = True
            free[:, nearest] = 0
    return correct


def _error(same: np.ndarray, other: np.ndarray, found: np.ndarray) -> tuple[str, int | None]:
    """The kind of a wrong detection, and the object that it would find if it were corrected.

    Args:
        same: IoU (N,) with each object, 0 for those of another class.
        other: IoU (N,) with each object, 0 for those of the same class.
        found: (N,), whether the object is found by a correct detection.
    """
    if not len(found):
        return "bkg", None
    if _BACKGROUND <= same.max() <= _IOU:
        return "loc", int(same.argmax())
    if other.max() >= _IOU:
        return "cls", int(other.argmax())
    if same[found].max(initial=0) >= _IOU:
        return "dupe", None
    return ("bkg" if max(same.max(), other.max()) <= _BACKGROUND else "both"), None


def _judge_image(
    found: Sequence[Instance], truth: Sequence[Instance], task: str, api: COCO
) -> tuple[list[_Detection], list[_Object]]:
    """Finds the errors in one image; `found` has the best score first."""
    crowds = [x for x in truth if x["iscrowd"]]
    truth = [x for x in truth if not x["iscrowd"]]
    detections = [_Detection(x["category_id"], x["score"]) for x in found]
    objects = [_Object(x["category_id"]) for x in truth]
    regions = _regions(found, task, api)
    ious = _ious(regions, _regions(truth, task, api), False)
    same_class = _same_class(found, truth)
    in_crowd = _ious(regions, _regions(crowds, task, api), True) >= _IOU
    in_crowd = (in_crowd & _same_class(found, crowds)).any(1)
    correct = _match(detections, objects, ious * same_class)
    taken = np.array([x.found for x in objects], dtype=bool)
    for index in np.flatnonzero(~correct):
        detection, same = detections[index], ious[index] * same_class[index]
        detection.in_crowd = bool(in_crowd[index])
        detection.error, nearest = _error(same, ious[index] - same, taken)
        if nearest is not None and not taken[nearest]:
            detection.target = objects[nearest]
            detection.target.best = detection.target.best or detection
    return detections, objects


def _points(
    detections: Iterable[_Detection], corrected: str | None
) -> Iterator[tuple[Id, float, bool]]:
    """Class, score and correctness of each detection after one kind of error is corrected."""
    for x in detections:
        if x.error is None:
            yield x.category, x.score, True
        elif x.error == corrected:
            if x.target is not None and x.target.best is x:
                yield x.target.category, x.score, True
        elif not x.in_crowd:
            yield x.category, x.score, False


def _average_precision(points: Sequence[tuple[float, bool]], positives: int) -> float:
    """COCO's, of one class, in percent: the mean precision at 101 recalls."""
    if not points or not positives:
        return 0.0
    ordered = sorted(points, key=lambda point: -point[0])
    right = np.cumsum([correct for _, correct in ordered])
    precision = right / np.arange(1, len(right) + 1)
    precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    reached = np.searchsorted(right / positives, np.linspace(0, 1, 101), side="left")
    return 100 * float(precision[reached].mean())


def _mean_ap(points: Iterable[tuple[Id, float, bool]], positives: Counter[Id]) -> float:
    """The mean over the classes in `positives`, their number of objects, in percent.

    As with `tidecv`, a class does not count if it has neither objects nor detections: those of its
    objects that were missed have been taken out.
    """
    by_class: dict[Id, list[tuple[float, bool]]] = defaultdict(list)
    for category, score, correct in points:
        by_class[category].append((score, correct))
    classes = [c for c, count in positives.items() if count or by_class[c]]
    return float(np.mean([_average_precision(by_class[c], positives[c]) for c in classes] or [0]))


def find_errors(
    api: COCO,
    predictions: Mapping[Id, Sequence[Instance]],
    task: str,
    *,
    max_dets_per_image: int = 100,
) -> DetectionErrors:
    """Finds the errors of a model, and what they cost.

    Args:
        api: the annotations, from `coco_api`.
        predictions: detections in COCO's results format by image id.
        task: "bbox" or "segm".
        max_dets_per_image: number of detections of each category that count.
    """
    detections: list[_Detection] = []
    objects: list[_Object] = []
    for image in sorted(api.imgs):
        found = _counted(predictions.get(image, ()), max_dets_per_image)
        judged = _judge_image(found, api.imgToAnns[image], task, api)
        detections += judged[0]
        objects += judged[1]
    positives = Counter(x.category for x in objects)
    unfound = Counter(x.category for x in objects if not x.found)
    missed = Counter(x.category for x in objects if not x.found and x.best is None)

    def cost(corrected: str | None, removed: Counter[Id]) -> float:
        left = Counter({c: count - removed[c] for c, count in positives.items()})
        return _mean_ap(_points(detections, corrected), left) - ap

    ap = _mean_ap(_points(detections, None), positives)
    # Interpolation can make a correction seem harmful.
    costs = {kind: max(cost(kind, Counter()), 0.0) for kind in ERRORS[:-1]}
    costs["miss"] = max(cost(None, missed), 0.0)
    right = [x for x in detections if x.error is None]
    costs["FP"] = _mean_ap(_points(right, None), positives) - ap
    costs["FN"] = cost(None, unfound)
    counts = Counter(x.error for x in detections)
    totals = {kind: counts[kind] for kind in ERRORS[:-1]} | {"miss": missed.total()}
    totals |= {"FP": len(detections) - len(right), "FN": unfound.total()}
    return DetectionErrors(ap, costs, totals)


def _table(task: str, runs: Mapping[str, DetectionErrors]) -> str:
    columns = (*ERRORS, *SPECIAL_ERRORS)
    rows = [[task, "AP50", *columns]]
    for name, errors in runs.items():
        cells = [f"{errors.costs[kind]:.2f} ({errors.counts[kind]})" for kind in columns]
        rows.append([name, f"{errors.ap:.2f}", *cells])
    return markdown_table(rows)


def _write_csv(tasks: Mapping[str, Mapping[str, DetectionErrors]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "run", "AP50", "error", "cost", "number"])
        for task, runs in tasks.items():
            for name, errors in runs.items():
                for kind, cost in errors.costs.items():
                    writer.writerow([task, name, errors.ap, kind, cost, errors.counts[kind]])


def _load(
    json_file: str | Path, results: Mapping[str, str | Path]
) -> tuple[dict[str, EvaluatedImages], list[str]]:
    """The predictions of each run, and the tasks that all runs have."""
    if not results:
        raise ValueError("there must be at least one results file to analyse, got none")
    loaded = {name: load_results(json_file, file) for name, file in results.items()}
    tasks = []
    for name, images in loaded.items():
        if not images.api.anns:
            raise ValueError(f"{json_file} must hold annotations, got none")
        found = [x for by_image in images.predictions.values() for x in by_image]
        if not found:
            raise ValueError(f"{results[name]} must hold detections, got none")
        tasks.append(tasks_of(images.data, found))
    return loaded, [task for task in tasks[0] if all(task in others for others in tasks)]


def analyze_errors(
    json_file: str | Path,
    results: Mapping[str, str | Path],
    output_dir: str | Path,
    *,
    max_dets_per_image: int = 100,
) -> tuple[str, list[Path]]:
    """Writes what each kind of error costs each of several models, as tables and bars.

    Boxes are analysed, and masks if the annotations and all results have them.

    Args:
        json_file: annotations in COCO's instances format.
        results: for the name of each run, `coco_instances_results.json` of its evaluation.
        output_dir: folder for `tide_errors.md`, `tide_errors.csv` and `tide_errors_{task}.png`; it
            is made if necessary.
        max_dets_per_image: as in `find_errors`.

    Returns:
        The tables as text, and the files.

    Raises:
        ValueError: a file cannot be read, belongs to another data set, or has no annotations or
            no detections.
    """
    check_arguments(None, max_dets_per_image)
    loaded, names = _load(json_file, results)
    tasks: dict[str, dict[str, DetectionErrors]] = {}
    for task in names:
        tasks[task] = {}
        for name, images in loaded.items():
            api = coco_api(images.data, masks=task == "segm")
            tasks[task][name] = find_errors(
                api, images.predictions, task, max_dets_per_image=max_dets_per_image
            )
    folder = Path(output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "tide_errors.md", folder / "tide_errors.csv"]
    text = "\n\n".join(_table(task, runs) for task, runs in tasks.items())
    written[0].write_text(f"{text}\n", encoding="utf-8")
    _write_csv(tasks, written[1])
    for task, runs in tasks.items():
        written.append(folder / f"tide_errors_{task}.png")
        costs = {name: errors.costs for name, errors in runs.items()}
        plot_errors(costs, (ERRORS, SPECIAL_ERRORS), written[-1])
    return text, written
