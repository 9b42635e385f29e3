"""Hooks that evaluate, and that keep the training state when training stops early."""

import logging
from abc import abstractmethod

import torch
from detectron2.engine import HookBase
from detectron2.engine import hooks as detectron2_hooks

from vitadapter.engine.checkpoint import FINAL_NAME, AtomicCheckpointer

__all__ = ["AfterEvaluation", "EvalHook", "PeriodicSaver", "StateKeeper"]

logger = logging.getLogger(__name__)


# The forward pass changes these, so before the iteration is complete.
_RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class EvalHook(detectron2_hooks.EvalHook):
    """Detectron2's, except that

    - it does not evaluate if training was stopped in its very last iteration, nor the same weights
      twice if an evaluation ends training early;
    - a signal stops it at once.

    Attributes:
        completed: how many iterations were complete at the last evaluation; None before the first.
    """

    completed: int | None = None

    def after_train(self) -> None:
        """Evaluates if training is finished."""
        if self.trainer.iter >= self.trainer.max_iter != self.completed:
            super().after_train()

    def _do_eval(self) -> None:
        with self.trainer.stop_signals.at_once():
            super()._do_eval()
        # In `after_train`, the trainer is beyond the last iteration already.
        self.completed = min(self.trainer.iter + 1, self.trainer.max_iter)


class AfterEvaluation(HookBase):
    """Does something after each evaluation. Register it behind the hook that evaluates.

    Args:
        evaluation: the hook that evaluates.
    """

    def __init__(self, evaluation: EvalHook) -> None:
        self._evaluation = evaluation
        self._seen: int | None = None

    def after_step(self) -> None:
        """Acts if the iteration has been evaluated."""
        self._look()

    def after_train(self) -> None:
        """Acts if there was an evaluation after the last iteration."""
        self._look()

    def _look(self) -> None:
        completed = self._evaluation.completed
        if completed is not None and completed != self._seen:
            self._seen = completed
            self.after_evaluation(completed)

    @abstractmethod
    def after_evaluation(self, completed: int) -> None:
        """
        Args:
            completed: how many iterations were complete when the weights were evaluated.
        """


class PeriodicSaver(detectron2_hooks.PeriodicCheckpointer):
    """Detectron2's, except that training goes on if the disk is full or away for a while.

    Only what remains of the run, the checkpoint of its last iteration, has to be written.
    """

    def after_step(self) -> None:
        """Saves if it is time."""
        try:
            super().after_step()
        except OSError as error:
            if self.trainer.iter + 1 >= self.trainer.max_iter:
                raise
            logger.error(
                "the checkpoint of iteration %d cannot be written: %s. Training goes on, and the "
                "next one is due after iteration %d; until then, the last complete one remains",
                self.trainer.iter,
                error,
                self.trainer.iter + self.period,
            )


class StateKeeper(HookBase):
    """Saves the last complete iteration when training stops early, whatever the reason.

    Ctrl-C and SIGTERM stop training as soon as the iteration is complete, or while it waits for
    data. An incomplete update is never saved. Batch statistics of an incomplete iteration are
    reverted, so that a batch with NaN leaves nothing in the checkpoint. Register this hook directly
    after those that belong to an update (the schedule, the average of the weights): an iteration
    counts as complete after them.

    Args:
        checkpointer: saves the model, and the trainer as one of its checkpointables.

    Attributes:
        lacks_final: whether the run that is resumed was stopped after its last iteration, before
            the final checkpoint, which is then written now.
    """

    def __init__(self, checkpointer: AtomicCheckpointer) -> None:
        self._checkpointer = checkpointer
        self.lacks_final = False
        self._completed: int | None = None
        self._is_updating = False
        named = checkpointer.model.named_buffers()
        self._statistics = [b for name, b in named if name.endswith(_RUNNING_STATISTICS)]
        self._before: list[torch.Tensor] = []

    def before_train(self) -> None:
        """Saves the final checkpoint, if that is all that is left to do."""
        if self.lacks_final:
            self._completed = self.trainer.max_iter - 1
            self._save_completed()

    def before_step(self) -> None:
        """Copies what the forward pass will change."""
        self._before = [statistic.clone() for statistic in self._statistics]

    def after_backward(self) -> None:
        """Marks the weights as possibly half updated, until `after_step`."""
        self._is_updating = True

    def after_step(self) -> None:
        """Marks the iteration as complete, and stops training if there was a signal."""
        self._completed = self.trainer.iter
        self._is_updating = False
        self.trainer.check_signals()

    def after_train(self) -> None:
        """Saves the last complete iteration if training stopped early, and waits for the disk."""
        total = self.trainer.max_iter
        if self.trainer.iter >= total:
            return
        is_saved = self._save()
        try:
            self._checkpointer.wait()
        except OSError as error:  # which is not what has stopped training
            logger.error("%s: --resume continues from the last checkpoint before", error)
            return
        if is_saved and self._completed is not None:
            logger.warning(
                "training stopped with %d of %d iterations complete; its state is saved in %s. "
                "Run the same command with --resume to continue",
                self._completed + 1,
                total,
                self._checkpointer.save_dir,
            )

    def _save(self) -> bool:
        """Saves the last complete iteration; returns whether it is, or will be, on the disk."""
        total = self.trainer.max_iter
        if self._completed is None:
            logger.warning("training stopped before an iteration was complete: nothing to save")
            return False
        if self._is_updating:
            logger.error(
                "training stopped in the middle of the update of iteration %d of %d, which is not "
                "saved: --resume continues from the last checkpoint before",
                self.trainer.iter,
                total,
            )
            return False
        if self.trainer.iter != self._completed:
            for statistic, before in zip(self._statistics, self._before, strict=True):
                statistic.copy_(before)
        if self._checkpointer.saved_iteration == self._completed:
            return True
        if not self._checkpointer.can_save():
            return False
        try:
            self._save_completed()
        except (FloatingPointError, OSError) as error:
            logger.error(
                "training stopped at iteration %d of %d, whose state %s (%s): --resume "
                "continues from the last checkpoint before",
                self.trainer.iter,
                total,
                "cannot be written"
                if isinstance(error, OSError)
                else "is not saved because of infinite or NaN weights",
                error,
            )
            return False
        return True

    def _save_completed(self) -> None:
        assert self._completed is not None
        is_last = self._completed + 1 == self.trainer.max_iter
        interrupted = self.trainer.iter
        # The trainer's state has the last complete iteration; a resumed run starts at the next one.
        self.trainer.iter = self._completed
        try:
            self._checkpointer.save(
                FINAL_NAME if is_last else f"model_{self._completed:07d}",
                iteration=self._completed,
            )
        finally:
            self.trainer.iter = interrupted
