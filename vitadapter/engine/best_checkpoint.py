"""The weights with the best evaluation so far, and the end of training that no longer improves."""

import logging
import math
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from vitadapter.checkpoint.reading import read_checkpoint_file
from vitadapter.engine.checkpoint import (
    BEST_NAME,
    FINAL_NAME,
    AtomicCheckpointer,
    saved_files,
)
from vitadapter.engine.hooks import AfterEvaluation, EvalHook
from vitadapter.engine.settings import BestCheckpointSettings

__all__ = ["BestCheckpointer"]

logger = logging.getLogger(__name__)


class _Best(NamedTuple):
    """What `model_best.pth` holds besides the weights."""

    metric: str
    mode: str
    value: float
    completed: int
    """How many iterations were complete."""


class BestCheckpointer(AfterEvaluation):
    """Saves the evaluated weights as `model_best.pth` whenever an evaluation is the best so far.

    Unlike Detectron2's hook of this name,

    - it refuses a metric that the evaluation does not give, and lists those it gives (COCO's gives
      none for masks where a model, early in training, detects nothing at all);
    - it saves the evaluated weights only, in a file that a run does not resume from;
    - it keeps the best value of a run that is resumed, which the file holds;
    - it ignores training that was stopped in its very last iteration, before the evaluation;
    - with `patience`, it ends training that many evaluations after the best one. The run then
      counts as finished.

    Register it after the hook that evaluates, and in every process.

    Args:
        evaluation: the hook that evaluates.
        eval_period: its period, in iterations.
        checkpointer: writes the files, into its folder.
        model: whose weights are evaluated.
        results: what the last evaluation gave; empty in all processes but the first.
        settings: `train.best_checkpoint`; with a metric.
    """

    def __init__(
        self,
        evaluation: EvalHook,
        eval_period: int,
        checkpointer: AtomicCheckpointer,
        model: nn.Module,
        results: Mapping[str, Mapping[str, float]],
        settings: BestCheckpointSettings,
    ) -> None:
        super().__init__(evaluation)
        assert settings.metric is not None
        self._period = eval_period
        self._checkpointer = checkpointer
        self._model = model
        self._results = results
        self._metric, self._mode = settings.metric, settings.mode
        self._patience = settings.patience
        self._best: _Best | None = None
        self._is_known = False
        self._start = 0
        self._is_start_known = False

    def state_dict(self) -> dict[str, object]:
        """Where the evaluations of `patience` are counted from, as long as there is no best."""
        rule = {"metric": self._metric, "mode": self._mode, "patience": self._patience}
        return {**rule, "start": self._start}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Takes over what a checkpoint has, if it looked for the same best."""
        start = state.get("start")
        if isinstance(start, int) and {**state, "start": self._start} == self.state_dict():
            self._start, self._is_start_known = start, True

    def resume(self, start: int) -> None:
        """Takes over the best value of the run that is resumed.

        Args:
            start: the iteration that training continues with.
        """
        # Where none was looked for before, a best that cannot be used is as old as this start.
        if not self._is_start_known:
            self._start = start
        found = saved_files(Path(self._checkpointer.save_dir), BEST_NAME)
        if not found:
            return
        path = max(found, key=lambda path: path.stat().st_mtime_ns)
        try:
            best = read_checkpoint_file(path, is_mapped=True).get("best")
        except ValueError as error:
            logger.warning("%s: it is replaced by the best from here on", error)
            return
        best = best if isinstance(best, Mapping) else {}
        value, completed = best.get("value"), best.get("completed", start)
        same = (best.get("metric"), best.get("mode")) == (self._metric, self._mode)
        if same and isinstance(value, float) and isinstance(completed, int):
            self._best = _Best(self._metric, self._mode, value, completed)
        else:
            logger.warning(
                "%s is the best by %s: it is replaced by the best by %s from here on",
                path,
                best.get("metric"),
                self._metric,
            )

    def is_exhausted(self, completed: int) -> bool:
        """Whether `patience` evaluations have brought no new best.

        Evaluations are counted by the iterations since the best, so that a run that is stopped and
        resumed at any moment counts as one that was not.

        Args:
            completed: number of complete iterations.
        """
        if self._patience is None:
            return False
        since = self._best.completed if self._best is not None else self._start
        exhausted = completed // self._period - since // self._period >= self._patience
        # The first process knows the values; all end together.
        return comm.all_gather(exhausted)[0]

    def after_evaluation(self, completed: int) -> None:
        """Saves the weights if they are the best so far; ends training if they have not been."""
        flat = flatten_results_dict(dict(self._results))
        self._is_known = self._is_known or self._check_known(flat)
        # The first process knows it, and all may have to save their parts.
        value = comm.all_gather(float(flat.get(self._metric, math.nan)))[0]
        if math.isfinite(value) and self._is_better(value):
            logger.info("%s=%g is the best so far", self._metric, value)
            self._save(_Best(self._metric, self._mode, value, completed))
        if completed < self.trainer.max_iter and self.is_exhausted(completed):
            self._end(completed)

    def _save(self, best: _Best) -> None:
        fault: str | None = None
        try:
            self._checkpointer.save_weights(
                BEST_NAME, self._model, iteration=self.trainer.iter, best=best._asdict()
            )
            # A run that is killed later does not evaluate this iteration again.
            self._checkpointer.wait()
        except OSError as error:
            fault = str(error)
        # It may be the first process alone that cannot write, and all have to know the same best.
        if fault := next(filter(None, comm.all_gather(fault)), None):
            # The best of the file remains the one to beat.
            logger.error("the best weights cannot be written, and training goes on: %s", fault)
        else:
            self._best = best

    def _is_better(self, value: float) -> bool:
        if self._best is None:
            return True
        return value > self._best.value if self._mode == "max" else value < self._best.value

    def _end(self, completed: int) -> None:
        found = "none at all" if self._best is None else f"{self._best.value:g} is still the best"
        logger.info(
            "Training ends early, after %d of %d iterations, because evaluations without a new "
            "best %s have reached train.best_checkpoint.patience=%d (%s). To go on, set it higher "
            "and add --resume",
            completed,
            self.trainer.max_iter,
            self._metric,
            self._patience,
            found,
        )
        self._checkpointer.save(FINAL_NAME, iteration=self.trainer.iter)
        self.trainer.finish_early()

    def _check_known(self, flat: Mapping[str, float]) -> bool:
        """Whether the metric is one; False where nothing was detected, so that it may yet come."""
        # From the first process to all, so that all stop.
        known, is_empty = comm.all_gather((sorted(flat), all(map(math.isnan, flat.values()))))[0]
        if self._metric in known:
            return True
        if known and is_empty:
            return False
        near = get_close_matches(self._metric, known, n=1, cutoff=0.0)
        listed = [name for name in known if "-" not in name]  # leaves out those of single classes
        raise ValueError(
            f"train.best_checkpoint.metric={self._metric} is not among the metrics of the "
            f"evaluation: {', '.join(listed or known) or 'it has none'}. Run the same command "
            f"with --resume train.best_checkpoint.metric={near[0] if near else 'null'}"
        )
