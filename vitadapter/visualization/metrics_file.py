"""Reads `metrics.json`, the scalars of a run, in the form of Detectron2's `JSONWriter`."""

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitadapter.visualization.markdown import figure_cell, markdown_table

__all__ = [
    "METRICS_NAME",
    "RunMetrics",
    "RunSummary",
    "format_table",
    "parse_row",
    "read_metrics",
    "summarize",
]

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.json"
"""File name of the scalars of a run, in its output folder."""
_TRAINING_KEY = "total_loss"


@dataclass(frozen=True)
class RunMetrics:
    """The scalars of one run, as if it had never been interrupted.

    Attributes:
        source: the file they are from.
        rows: the scalars logged in each iteration (counted from 0), in ascending order.
    """

    source: Path
    rows: Mapping[int, Mapping[str, float]]

    def names(self) -> list[str]:
        """The names of all scalars."""
        return sorted({name for row in self.rows.values() for name in row})

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The scalar `name` over time.

        Returns:
            Iterations (N,) and values (N,), empty if the name is
            unknown.
        """
        points = [(i, row[name]) for i, row in self.rows.items() if name in row]
        iterations = np.array([i for i, _ in points], dtype=np.int64)
        return iterations, np.array([value for _, value in points], dtype=np.float64)

    def iterations(self) -> int:
        """The number of iterations that were trained."""
        return int(self.curve(_TRAINING_KEY)[0][-1]) + 1

    def minutes(self) -> np.ndarray:
        """Training time at each row of the `total_loss` curve, without evaluation.

        "time" is the duration of one iteration. A row counts for all iterations since the previous
        row. The first few iterations of a run have no "time" and use that of the next row.

        Returns:
            (N,) cumulative minutes.

        Raises:
            ValueError: the run has no "time".
        """
        iterations, _ = self.curve(_TRAINING_KEY)
        timed, seconds = self.curve("time")
        if not len(timed):
            raise ValueError(f"{self.source} must have 'time' in some row, found in none")
        nearest = np.searchsorted(timed, iterations).clip(max=len(timed) - 1)
        return np.cumsum(seconds[nearest] * np.diff(iterations, prepend=-1)) / 60

    def last(self, name: str) -> float | None:
        """The last value of the scalar `name`; None if it is unknown or not finite."""
        _, values = self.curve(name)
        return float(values[-1]) if len(values) and math.isfinite(values[-1]) else None


@dataclass(frozen=True)
class RunSummary:
    """One row of a comparison, with average precision in percent, or None if not measured."""

    name: str
    iterations: int
    minutes: float
    box_ap: float | None
    box_ap50: float | None
    mask_ap: float | None


def parse_row(line: str) -> dict[str, Any] | None:
    """Reads what an iteration has written; None if the line is broken.

    Args:
        line: of `metrics.json`.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(row, dict) or type(row.get("iteration")) is not int or row["iteration"] < 0:
        return None
    return row


def _parse_line(line: str) -> dict[str, float] | None:
    """The scalars in a line; None if it is broken."""
    row = parse_row(line)
    if row is None:
        return None
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


def _parse(text: str, path: Path) -> Iterable[dict[str, float]]:
    """The rows of the file. What an interrupted write cut off is left out with a warning."""
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, line in lines:
        row = _parse_line(line)
        if row is None:
            # A resumed run appends to the line that the interrupted one could not finish.
            row = _parse_line(line[line.rfind("{") :])
            if row is None and number != lines[-1][0]:
                raise ValueError(
                    f"line {number} of {path} must be a json object with an integer 'iteration', "
                    f"got {line[:80]!r}"
                )
            logger.warning("line %d of %s was cut off and is left out", number, path)
        if row is not None:
            yield row


def _merge(parsed: Iterable[dict[str, float]]) -> dict[int, dict[str, float]]:
    """Rows in ascending order. A resumed run replaces the rows of iterations that it repeats."""
    rows: dict[int, dict[str, float]] = {}
    last_trained = -1
    for line in parsed:
        iteration = int(line["iteration"])
        if _TRAINING_KEY in line:
            # Evaluations may be written late, but losses go back only when training does.
            if iteration <= last_trained:
                rows = {i: row for i, row in rows.items() if i < iteration}
            last_trained = iteration
        scalars = {name: float(value) for name, value in line.items()}
        rows.setdefault(iteration, {}).update(scalars)
    return dict(sorted(rows.items()))


def read_metrics(run: str | Path) -> RunMetrics:
    """Reads the scalars of a run.

    If a resumed run repeats iterations, the later rows are used. A line that an interrupted write
    cut off is left out with a warning.

    Args:
        run: the output folder of a run, or its `metrics.json`.

    Raises:
        ValueError: the file is missing, broken, or has no training iteration.
    """
    path = Path(run).expanduser()
    path = path / METRICS_NAME if path.suffix != ".json" else path
    if not path.is_file():
        raise ValueError(
            f"{path} must be the metrics of a training run, but it does not exist or is a folder"
        )
    rows = _merge(_parse(path.read_text(encoding="utf-8", errors="replace"), path))
    if not any(_TRAINING_KEY in row for row in rows.values()):
        raise ValueError(
            f"{path} must have rows with '{_TRAINING_KEY}', got {len(rows)} rows without it"
        )
    return RunMetrics(path, rows)


def summarize(name: str, metrics: RunMetrics) -> RunSummary:
    """How long a run trained, and the average precision of its last evaluation."""
    evaluated, _ = metrics.curve("bbox/AP")
    iterations = metrics.iterations()
    if len(evaluated) and evaluated[-1] < iterations - 1:
        logger.warning(
            "the AP of '%s' is from iteration %d, but its training went on to %d",
            name,
            evaluated[-1],
            iterations - 1,
        )
    return RunSummary(
        name,
        iterations,
        float(metrics.minutes()[-1]),
        metrics.last("bbox/AP"),
        metrics.last("bbox/AP50"),
        metrics.last("segm/AP"),
    )


def format_table(summaries: Sequence[RunSummary]) -> str:
    """An aligned Markdown table with one row per run."""
    rows = [["method", "iterations", "minutes", "box AP", "box AP50", "mask AP"]]
    for s in summaries:
        precision = [figure_cell(value, 1) for value in (s.box_ap, s.box_ap50, s.mask_ap)]
        rows.append([s.name, str(s.iterations), f"{s.minutes:.1f}", *precision])
    return markdown_table(rows)
