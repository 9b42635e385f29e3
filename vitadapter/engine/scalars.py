"""The scalars of a run, and `metrics.json`, continue as if the run had never been stopped."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

from vitadapter.visualization.metrics_file import parse_row

__all__ = ["KeptRows", "MetricsWriter", "ScalarKeeper", "kept_rows"]

# Number of iterations over which Detectron2's writers smooth losses.
_WINDOW = 20
_TRAINED = "total_loss"
# Text, which readers of scalars leave out.
_NOTE = {"note": "written when training was stopped"}


class ScalarKeeper(HookBase):
    """Keeps in checkpoints what writers have not yet written, or need to smooth what follows.

    Register it before the hooks that save.

    Attributes:
        last_written: returns the last iteration whose scalars have all been written, -1 before.
    """

    def __init__(self) -> None:
        self._saved: dict[str, list[Any]] = {}
        self._storage: EventStorage | None = None
        self.last_written: Callable[[], int] = lambda: -1

    def before_train(self) -> None:
        """Puts the scalars of the checkpoint into the storage of the trainer."""
        self._storage = self.trainer.storage
        for name, (is_smoothed, *values) in self._saved.items():
            for value, iteration in values:
                self._storage.put_scalar(
                    name, value, smoothing_hint=is_smoothed, cur_iter=iteration
                )

    def state_dict(self) -> dict[str, list[Any]]:
        """For each scalar: whether it is smoothed, then pairs of value and iteration."""
        if self._storage is None:
            return self._saved
        hints = self._storage.smoothing_hints()
        return {
            name: [hints[name], *kept]
            for name, history in self._storage.histories().items()
            # A new start measures it only after some iterations. Until then, it would be old news.
            if name != "time"
            if (kept := self._kept(history.values(), is_smoothed=hints[name]))
        }

    def _kept(
        self, values: Sequence[tuple[float, float]], *, is_smoothed: bool
    ) -> list[list[float]]:
        """The values of the last iterations up to the one that is saved, which is complete."""
        found: list[list[float]] = []
        for value, iteration in reversed(values):
            if iteration > self.trainer.iter:
                continue
            if found and iteration <= found[0][1] - _WINDOW:
                break
            # Written, and needed no more: a run that resumed after that would not have it.
            if not is_smoothed and iteration <= self.last_written():
                break
            found.append([value, iteration])
        return found[::-1]

    def load_state_dict(self, state: dict[str, list[Any]]) -> None:
        """Takes over what a checkpoint has.

        Raises:
            ValueError: it is not of the form that `state_dict` gives.
        """
        for name, entry in state.items():
            match entry:
                case [bool(), *values] if all(map(_is_point, values)):
                    continue
            raise ValueError(f"the scalar {name} of the checkpoint is damaged: {entry!r:.100}")
        self._saved = state


def _is_point(value: object) -> bool:
    match value:
        case [float(), int()]:
            return True
    return False


class KeptRows(NamedTuple):
    """What a resumed run keeps of `metrics.json`."""

    lines: list[str]
    last: int
    """The last iteration that has been written; -1 if there is none."""

    is_complete: bool
    """Whether everything of the iteration before the start has been done and written."""

    replaced_from: int | None
    """The first iteration that is written again; None if nothing is replaced."""


def _parsed(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines of the file and their rows; without the last one if a kill has cut it off."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [(line, parse_row(line)) for line in text.split("\n")]
    # Other programs' lines are none of our business.
    whole = lines[:-1] if lines[-1][1] is None else lines
    return [(line, row or {"iteration": -1}) for line, row in whole]


def _before_training(rows: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """The lines of evaluations before a run that left no checkpoint."""
    first = next((n for n, (_, row) in enumerate(rows) if _TRAINED in row), len(rows))
    # Evaluations during training may be written with a later iteration, just before it.
    end = rows[first][1]["iteration"] if first < len(rows) else 0
    return [line for line, row in rows[:first] if not 0 < row["iteration"] <= end]


def kept_rows(path: Path, start: int, *, keeps_result: bool = False) -> KeptRows:
    """Finds the rows that a run will not write again when it continues.

    These are all up to the iteration before, except for what was written because of a stop.

    Args:
        path: of `metrics.json`, which may not exist.
        start: the iteration that training continues with.
        keeps_result: whether the result of a finished run, which now goes on, is kept. It
            has the number of the next iteration.
    """
    rows = _parsed(path)
    if start == 0:
        lines = _before_training(rows)
        return KeptRows(lines, -1, True, None if len(lines) == len(rows) else 0)
    kept: list[str] = []
    last, latest, is_complete = -1, -1, False
    for line, row in rows:
        iteration, is_trained = row["iteration"], _TRAINED in row
        is_result = keeps_result and iteration == start and not is_trained
        if row.items() >= _NOTE.items() or (iteration >= start and not is_result):
            continue
        kept.append(line)
        latest = max(latest, iteration)
        if not is_result:
            last = max(last, iteration)
            is_complete |= is_trained and iteration == start - 1
    return KeptRows(kept, last, is_complete, latest + 1 if rows else start)


def _write_lines(file: TextIO, lines: list[str]) -> None:
    file.write("".join(f"{line}\n" for line in lines))
    file.flush()
    os.fsync(file.fileno())


class MetricsWriter(EventWriter):
    """Writes the scalars of each iteration as a line of JSON, like Detectron2's `JSONWriter`.

    Unlike there, rows are in the order of their iterations, and a resumed run replaces those that
    it writes again, in one step with its first row.

    Args:
        path: the file, which is appended to.
        kept: what a resumed run keeps of it; None for everything.

    Attributes:
        is_stopped: whether training was stopped, so that a resumed run will replace what is written
            now.
        last: the last iteration that has been written; -1 if there is none.
    """

    def __init__(self, path: Path, kept: KeptRows | None = None) -> None:
        self._path = path
        self._lines = None if kept is None or kept.replaced_from is None else kept.lines
        self.last = kept.last if kept is not None else -1
        self.is_stopped = False

    def _rows(self) -> Iterator[dict[str, Any]]:
        rows: dict[int, dict[str, object]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(_WINDOW)
        for name, (value, iteration) in latest.items():
            if iteration > self.last:
                rows[iteration][name] = value
        for iteration, row in sorted(rows.items()):
            yield {**row, "iteration": iteration, **(_NOTE if self.is_stopped else {})}

    def write(self) -> None:
        """Writes the scalars that are new."""
        rows = list(self._rows())
        if not rows:
            return
        lines = [json.dumps(row, sort_keys=True) for row in rows]
        if self._lines is not None:
            self._replace([*self._lines, *lines])
            self._lines = None
        else:
            self._append(lines)
        # What could not be written is tried again with the next.
        self.last = rows[-1]["iteration"]

    def _append(self, lines: list[str]) -> None:
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a", encoding="utf-8") as file:
                _write_lines(file, lines)
        except OSError:
            if self._path.exists():
                os.truncate(self._path, size)  # a line that is cut off would spoil the next
            raise

    def _replace(self, lines: list[str]) -> None:
        partial = self._path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            _write_lines(file, lines)
        partial.replace(self._path)

    def close(self) -> None:
        """Does nothing: the file is open only while it is written to."""
