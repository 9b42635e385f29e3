"""Continuing a run: the state of its last checkpoint, under the settings of the config."""

import logging
from pathlib import Path

import torch
from detectron2.engine import SimpleTrainer

from vitadapter.engine.checkpoint import BEST_NAME, AtomicCheckpointer, check_loaded
from vitadapter.engine.ema import WeightEMA

__all__ = ["resume_training"]

logger = logging.getLogger(__name__)

# Of a parameter group. "lr" is not among them: the schedule computes it from "initial_lr".
_SETTINGS = ("weight_decay", "momentum", "betas")


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, object]]:
    """What the config says of each parameter group of an optimizer just built."""
    return [
        {"initial_lr": group["lr"], **{key: group[key] for key in _SETTINGS if key in group}}
        for group in optimizer.param_groups
    ]


def _apply_settings(
    optimizer: torch.optim.Optimizer, settings: list[dict[str, object]], path: str
) -> None:
    """Puts the config's settings in the place of the checkpoint's, with one warning for each."""
    changed: dict[str, tuple[object, object]] = {}
    for group, wanted in zip(optimizer.param_groups, settings, strict=True):
        for key, new in wanted.items():
            old = group.get(key)
            if old != new:
                changed.setdefault(key, (old, new))
                group[key] = new
    for key, (old, new) in changed.items():
        logger.warning("%s was trained with %s=%s, from here on it is %s", path, key, old, new)


def resume_training(
    checkpointer: AtomicCheckpointer, trainer: SimpleTrainer, ema: WeightEMA | None = None
) -> int:
    """Restores the whole state of the last checkpoint.

    The optimizer keeps the learning rate and weight decay that it was built with: where the
    checkpoint has others, a warning names both.

    Args:
        checkpointer: has the trainer among its checkpointables.
        trainer: its hooks are registered.
        ema: the average of the weights, if there is one.

    Returns:
        int: the iteration to go on with.

    Raises:
        ValueError: the checkpoint is lost, or belongs to another model or optimizer.
    """
    path = checkpointer.get_checkpoint_file()
    if not Path(path).is_file():
        others = {Path(name).name for name in checkpointer.get_all_checkpoint_files()}
        others -= {f"{BEST_NAME}.pth"}  # weights only
        raise ValueError(
            f"{checkpointer.save_dir}/last_checkpoint names {Path(path).name}, which does not "
            f"exist: write one of {sorted(others)} into it"
        )
    settings = _settings(trainer.optimizer)
    try:
        rest = checkpointer.load(path, checkpointables=["trainer"])
    except ValueError as error:  # the optimizer's parameter groups are others
        raise ValueError(
            f"{path} cannot be resumed with this config ({error}): take back what has changed, or "
            f"start another run with train.init_checkpoint={path} train.output_dir=..."
        ) from error
    check_loaded(checkpointer, path)
    if ema is not None:
        ema.restore(rest.get("model_ema"), trainer.model, path)
    _apply_settings(trainer.optimizer, settings, path)
    return trainer.iter + 1
