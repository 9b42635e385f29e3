"""The parts of `scripts/gpu_check.py`: their cases, one after the other, and what came of them."""

import json
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["NO_MEMORY", "Figures", "Outcome", "read_outcome", "run_cases", "without_memory_errors"]

Figures = dict[str, object]
"""A row: what was measured, or "left_out", the reason why not."""
NO_MEMORY = "does not fit in the GPU's memory"


@dataclass
class Outcome:
    """What is known of a part, also if it was stopped half-way.

    Attributes:
        planned: names of all cases, in order.
        rows: of the cases that have ended, with their "case".
        failed: what went wrong, by case.
    """

    planned: list[str]
    rows: list[Figures] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def left_out(self) -> dict[str, str]:
        """What was not measured without being at fault, and why."""
        left = {
            ": ".join(str(row[key]) for key in ("case", "implementation") if key in row): str(
                row["left_out"]
            )
            for row in self.rows
            if "left_out" in row
        }
        ended = {row["case"] for row in self.rows} | self.failed.keys()
        return left | {name: "not reached" for name in self.planned if name not in ended}


def read_outcome(path: Path) -> Outcome:
    """Reads what `run_cases` has written; of a part that did not begin, nothing is known."""
    return Outcome(**json.loads(path.read_text())) if path.is_file() else Outcome([])


def run_cases(cases: Mapping[str, Callable[[], Iterable[Figures]]], path: Path) -> bool:
    """Runs cases and writes what is known after each of them, since the process may be stopped.

    Args:
        cases: each gives its rows, by name.
        path: the file to write.

    Returns:
        Whether none of them failed. Memory that is too small is no failure.
    """
    outcome = Outcome(list(cases))
    for name, case in cases.items():
        _write(outcome, path)
        print(name, flush=True)
        try:
            outcome.rows += [{"case": name, **row} for row in without_memory_errors(case)]
        except Exception as error:  # the other cases go on
            traceback.print_exc()
            outcome.failed[name] = f"{type(error).__name__}: {error}"
    _write(outcome, path)
    return not outcome.failed


def without_memory_errors(case: Callable[[], Iterable[Figures]]) -> list[Figures]:
    """The rows of a case, or one that says that the memory is too small for it."""
    import torch  # not needed to read outcomes

    try:
        return list(case())
    except torch.OutOfMemoryError:
        rows: list[Figures] = [{"left_out": NO_MEMORY}]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the frames of the error are gone by now
    return rows


def _write(outcome: Outcome, path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(asdict(outcome)))
    new.replace(path)
