"""Learning-rate schedules."""

import math

from detectron2.solver.lr_scheduler import WarmupParamScheduler
from fvcore.common.param_scheduler import ParamScheduler

__all__ = ["PerEpoch", "warm_up"]

# So that rounding does not put the first iteration of an epoch into the one before.
_ROUNDING = 1e-6


class PerEpoch(ParamScheduler):
    """A schedule that changes at the start of each epoch only, as mmcv's by-epoch policies do.

    Args:
        scheduler: whose values at the starts of the epochs are held.
        epochs: number of them in the whole training.

    Raises:
        ValueError: no epochs.
    """

    def __init__(self, scheduler: ParamScheduler, *, epochs: int) -> None:
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        self.scheduler = scheduler
        self.epochs = epochs

    def __call__(self, where: float) -> float:
        """Multiplier of the learning rate.

        Args:
            where: progress of the training, in [0, 1).
        """
        return self.scheduler(math.floor(where * self.epochs + _ROUNDING) / self.epochs)


def warm_up(
    scheduler: ParamScheduler, *, max_iter: int, warmup_iters: int, warmup_factor: float
) -> WarmupParamScheduler:
    """Linear warm-up of a fixed number of iterations before a schedule of any length.

    Args:
        scheduler: multiplier of the learning rate over the whole training.
        max_iter: iterations of the whole training.
        warmup_iters: iterations of the warm-up; it ends where `scheduler` is by then.
        warmup_factor: multiplier at the first iteration, over the scheduler's own.

    Raises:
        ValueError: the warm-up does not end before the training.
    """
    if not 0 <= warmup_iters < max_iter:
        raise ValueError(
            "0 <= warmup_iters < max_iter is needed (override lr_multiplier.warmup_iters or "
            f"train.max_iter), got {warmup_iters=}, {max_iter=}"
        )
    return WarmupParamScheduler(scheduler, warmup_factor, warmup_iters / max_iter)
