"""Learning-rate schedules."""

import math

from detectron2.solver.lr_scheduler import WarmupParamScheduler
from fvcore.common.param_scheduler import ParamScheduler

__all__ = ["PerEpoch", "warm_up"]

# Without it, rounding could put the first iteration of an epoch into the one before.
_ROUNDING = 1e-6


class PerEpoch(ParamScheduler):
    """A schedule that changes only at the start of each epoch, as mmcv's by-epoch policies do.

    Args:
        scheduler: its value at the start of an epoch is used for the whole epoch.
        epochs: number of epochs of the whole training.

    Raises:
        ValueError: `epochs` is less than 1.
    """

    def __init__(self, scheduler: ParamScheduler, *, epochs: int) -> None:
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        self.scheduler = scheduler
        self.epochs = epochs

    def __call__(self, where: float) -> float:
        """Returns the multiplier of the learning rate.

        Args:
            where: progress of the training, in [0, 1).
        """
        return self.scheduler(math.floor(where * self.epochs + _ROUNDING) / self.epochs)


def warm_up(
    scheduler: ParamScheduler, *, max_iter: int, warmup_iters: int, warmup_factor: float
) -> WarmupParamScheduler:
    """Adds a linear warm-up of a fixed number of iterations to a schedule of any length.

    Args:
        scheduler: gives the multiplier of the learning rate over the whole training.
        max_iter: iterations of the whole training.
        warmup_iters: iterations of the warm-up, which ends at the value that `scheduler` has then.
        warmup_factor: multiplier at the first iteration, relative to the scheduler's own.

    Raises:
        ValueError: the warm-up does not end before the training.
    """
    if not 0 <= warmup_iters < max_iter:
        raise ValueError(
            "0 <= warmup_iters < max_iter is needed (override lr_multiplier.warmup_iters or "
            f"train.max_iter), got {warmup_iters=}, {max_iter=}"
        )
    return WarmupParamScheduler(scheduler, warmup_factor, warmup_iters / max_iter)
