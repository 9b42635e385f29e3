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
from pycocotools.coco import COCO

from vitadapter.data.coco.json_entries import Id
from vitadapter.data.coco.results import EvaluatedImages, Instance, coco_api, load_results
from vitadapter.evaluation.detection_analysis import check_arguments, tasks_of
from vitadapter.evaluation.judging import ERRORS, JudgedDetection, JudgedImage, judge_images
from vitadapter.visualization.figures import plot_errors
from vitadapter.visualization.markdown import markdown_table

__all__ = [
    "ERRORS",
    "SPECIAL_ERRORS",
    "DetectionErrors",
    "analyze_errors",
    "cost_of_errors",
    "find_errors",
]

SPECIAL_ERRORS = ("FP", "FN")
"""All false detections, and all objects that are not found: these overlap with the kinds above."""


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


def _points(
    detections: Iterable[JudgedDetection], corrected: str | None
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
    return cost_of_errors(
        judge_images(api, predictions, task, max_dets_per_image=max_dets_per_image)
    )


def cost_of_errors(images: Sequence[JudgedImage]) -> DetectionErrors:
    """What the errors of a model cost.

    Args:
        images: from `judge_images`.
    """
    detections = [x for image in images for x in image.detections]
    objects = [x for image in images for x in image.objects]
    positives = Counter(x.category for x in objects)
    unfound = Counter(x.category for x in objects if x.found_by is None)
    missed = Counter(x.category for x in objects if x.found_by is None and x.best is None)

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
