"""The weights with the best evaluation so far."""

import logging
import math
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from vitadapter.checkpoint.reading import read_checkpoint_file
from vitadapter.engine.checkpoint import BEST_NAME, AtomicCheckpointer

__all__ = ["BestCheckpointer"]

logger = logging.getLogger(__name__)


class BestCheckpointer(HookBase):
    """Saves the evaluated weights as `model_best.pth` whenever an evaluation is the best so far.

    Unlike Detectron2's hook of this name,

    - it refuses a metric that the evaluation does not give, and lists those it gives (COCO's gives
      none for masks where a model, early in training, detects nothing at all);
    - it saves the evaluated weights only, in a file that a run does not resume from;
    - it keeps the best value of a run that is resumed, which the file holds;
    - it ignores training that was stopped in its very last iteration, before the evaluation.

    Register it after the hook that evaluates, and in every process.

    Args:
        eval_period: of the evaluating hook.
        checkpointer: writes the file, into its folder.
        model: whose weights are evaluated.
        results: what the last evaluation gave; empty in all processes but the first.
        metric: name of the value that counts, such as "segm/AP".
        mode: "max" or "min": whether it is good when it is high or low.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: AtomicCheckpointer,
        model: nn.Module,
        results: Mapping[str, Mapping[str, float]],
        metric: str,
        mode: str,
    ) -> None:
        self._period = eval_period
        self._checkpointer = checkpointer
        self._model = model
        self._results = results
        self._metric, self._mode = metric, mode
        self._sign = 1 if mode == "max" else -1
        self._best = -math.inf  # times the sign
        self._is_known = False

    def before_train(self) -> None:
        """Takes the best value of the run that is resumed."""
        path = Path(self._checkpointer.save_dir, f"{BEST_NAME}.pth")
        if self.trainer.start_iter == 0 or not path.is_file():
            return
        try:
            best = read_checkpoint_file(path, is_mapped=True).get("best")
        except ValueError as error:
            logger.warning("%s: it is replaced by the best from here on", error)
            return
        best = best if isinstance(best, Mapping) else {}
        value = best.get("value")
        same = (best.get("metric"), best.get("mode")) == (self._metric, self._mode)
        if same and isinstance(value, float):
            self._best = self._sign * value
        else:
            logger.warning(
                "%s is the best by %s: it is replaced by the best by %s from here on",
                path,
                best.get("metric"),
                self._metric,
            )

    def after_step(self) -> None:
        """Looks at an evaluation between the iterations."""
        completed = self.trainer.iter + 1
        is_evaluated = self._period > 0 and completed % self._period == 0
        if is_evaluated and completed < self.trainer.max_iter:
            self._look()

    def after_train(self) -> None:
        """Looks at the last evaluation if training was finished."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._look()

    def _look(self) -> None:
        flat = flatten_results_dict(dict(self._results))
        self._is_known = self._is_known or self._check_known(flat)
        value = float(flat.get(self._metric, math.nan))
        if not math.isfinite(value) or self._sign * value <= self._best:
            return
        logger.info("%s=%g is the best so far", self._metric, value)
        best = {"metric": self._metric, "mode": self._mode, "value": value}
        self._checkpointer.save_weights(
            BEST_NAME, self._model, iteration=self.trainer.iter, best=best
        )
        self._best = self._sign * value

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
