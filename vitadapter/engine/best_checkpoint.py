"""The weights with the best evaluation so far."""

import logging
import math
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from detectron2.engine import hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from vitadapter.checkpoint.reading import read_checkpoint_file
from vitadapter.engine.checkpoint import BEST_NAME, AtomicCheckpointer

__all__ = ["BestCheckpointer"]

logger = logging.getLogger(__name__)


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's, except that

    - a metric that the evaluation does not give is an error, which lists those it gives (COCO's
      gives no masks' where a model, early in training, detects nothing at all);
    - `model_best.pth` has the evaluated weights only, and is not what a run resumes from;
    - a resumed run keeps the best value, which the file holds;
    - training stopped in its very last iteration is not taken for evaluated.

    Register it after the hook that evaluates, and in every process.
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
        """
        Args:
            eval_period: of the evaluating hook.
            checkpointer: whose folder the file goes to.
            model: whose weights are evaluated.
            results: what the last evaluation gave; empty in all processes but the first.
            metric: name of the value that counts, such as "segm/AP".
            mode: "max" or "min": whether it is good when it is high or low.
        """
        super().__init__(eval_period, self, metric, mode)
        self._folder = checkpointer
        self._model = model
        self._results = results
        self._metric, self._mode = metric, mode
        self._is_known = False

    def save(self, name: str, iteration: int) -> None:
        """Called by Detectron2's hook, for which this object is the checkpointer."""
        value, _ = self.trainer.storage.latest()[self._metric]
        best = {"metric": self._metric, "mode": self._mode, "value": float(value)}
        self._folder.save_weights(name, self._model, iteration=iteration, best=best)

    def before_train(self) -> None:
        """Takes the best value of the run that is resumed."""
        path = Path(self._folder.save_dir, f"{BEST_NAME}.pth")
        if self.trainer.start_iter == 0 or not path.is_file():
            return
        try:
            saved = read_checkpoint_file(path, is_mapped=True)
        except ValueError as error:
            logger.warning("%s: it is replaced by the best from here on", error)
            return
        best = saved.get("best")
        best = best if isinstance(best, Mapping) else {}
        if (best.get("metric"), best.get("mode")) == (self._metric, self._mode):
            self.best_metric, self.best_iter = best.get("value"), saved.get("iteration")
        else:
            logger.warning(
                "%s is the best by %s: it is replaced by the best by %s from here on",
                path,
                best.get("metric"),
                self._metric,
            )

    def after_train(self) -> None:
        """Looks at the last evaluation if training was finished."""
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()

    def _best_checking(self) -> None:
        self._is_known = self._is_known or self._check_known()
        if comm.is_main_process():
            super()._best_checking()

    def _check_known(self) -> bool:
        """Whether the metric is one; False where nothing was detected, so that it may yet come."""
        flat = flatten_results_dict(dict(self._results))
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
