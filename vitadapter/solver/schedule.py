"""Learning-rate schedules."""

from detectron2.solver.lr_scheduler import WarmupParamScheduler
from fvcore.common.param_scheduler import ParamScheduler

__all__ = ["warm_up"]


def warm_up(
    scheduler: ParamScheduler, *, max_iter: int, warmup_iters: int, warmup_factor: float
) -> WarmupParamScheduler:
    """Linear warm-up of a fixed number of iterations before a schedule of any length.

    Args:
        scheduler: multiplier of the learning rate over the whole training.
        max_iter: iterations of the whole training.
        warmup_iters: iterations of the warm-up; it ends where ``scheduler`` is by then.
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
