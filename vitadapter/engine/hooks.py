"""Hooks that keep the training state when training ends before its time."""

import logging

import torch
from detectron2.engine import HookBase
from detectron2.engine import hooks as detectron2_hooks

from vitadapter.engine.checkpoint import AtomicCheckpointer
from vitadapter.engine.signals import SignalGate

__all__ = ["EvalHook", "StateKeeper"]

logger = logging.getLogger(__name__)


# Written by the forward pass, that is, before an iteration is complete.
_RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _is_finite(model: torch.nn.Module) -> bool:
    tensors = model.state_dict().values()
    return all(t.isfinite().all() for t in tensors if t.is_floating_point())


class EvalHook(detectron2_hooks.EvalHook):
    """Detectron2's, except that training stopped in its very last iteration is not evaluated."""

    def after_train(self) -> None:
        """Evaluates if training was finished."""
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()


class StateKeeper(HookBase):
    """Saves the last complete iteration when training stops early, whatever the reason.

    Ctrl-C and SIGTERM stop training at once, or, while the optimizer changes the weights, as soon
    as the iteration is complete: a half-made update is never saved. Batch statistics of the
    incomplete iteration are taken back, so that a batch with NaN leaves nothing in the checkpoint.
    Register this hook directly after the learning-rate scheduler's, so that "complete" includes
    the schedule.
    """

    def __init__(self, checkpointer: AtomicCheckpointer) -> None:
        """
        Args:
            checkpointer: saves the model and, among its checkpointables, the trainer.
        """
        self._checkpointer = checkpointer
        self._completed: int | None = None
        self._gate = SignalGate()
        named = checkpointer.model.named_buffers()
        self._statistics = [b for name, b in named if name.endswith(_RUNNING_STATISTICS)]
        self._before: list[torch.Tensor] = []

    def before_train(self) -> None:
        """Takes over the signals that stop training."""
        self._gate.install()

    def before_step(self) -> None:
        """Remembers what the forward pass will change."""
        self._before = [statistic.clone() for statistic in self._statistics]

    def after_backward(self) -> None:
        """From here to :meth:`after_step` the weights may be half updated."""
        self._gate.close()

    def after_step(self) -> None:
        """Notes that the iteration is complete."""
        self._completed = self.trainer.iter
        self._gate.open()

    def after_train(self) -> None:
        """Saves what an early end would lose, and gives the signals back."""
        self._gate.close()  # neither a second Ctrl-C nor a dying worker breaks off the saving
        try:
            if self.trainer.iter < self.trainer.max_iter:
                self._save()
        finally:
            self._gate.uninstall()

    def _save(self) -> None:
        total = self.trainer.max_iter
        if self._completed is None:
            logger.warning("training stopped before an iteration was complete: nothing to save")
            return
        if self.trainer.iter != self._completed:
            for statistic, before in zip(self._statistics, self._before, strict=True):
                statistic.copy_(before)
        if not _is_finite(self._checkpointer.model):
            logger.error(
                "training stopped at iteration %d of %d with infinite or NaN weights, which are "
                "not saved: --resume continues from the last checkpoint before",
                self.trainer.iter,
                total,
            )
            return
        if self._checkpointer.saved_iteration != self._completed:
            interrupted = self.trainer.iter
            # The trainer's state names the iteration that is complete; a resumed run adds one.
            self.trainer.iter = self._completed
            self._checkpointer.save(f"model_{self._completed:07d}", iteration=self._completed)
            self.trainer.iter = interrupted
        logger.warning(
            "training stopped with %d of %d iterations complete; its state is saved in %s. "
            "Run the same command with --resume to continue",
            self._completed + 1,
            total,
            self._checkpointer.save_dir,
        )
