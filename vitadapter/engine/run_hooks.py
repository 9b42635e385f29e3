"""The hooks that a config asks for."""

from collections.abc import Mapping

from detectron2.engine import hooks
from omegaconf import DictConfig
from torch import nn

from vitadapter.engine.best_checkpoint import BestCheckpointer
from vitadapter.engine.building import build
from vitadapter.engine.checkpoint import AtomicCheckpointer
from vitadapter.engine.data_order import IterationSeed
from vitadapter.engine.ema import EMAHook, WeightEMA
from vitadapter.engine.hooks import EvalHook, PeriodicSaver, StateKeeper
from vitadapter.engine.pictures import PicturesHook, indexed_samples
from vitadapter.engine.predictor import class_metadata
from vitadapter.engine.scalars import ScalarKeeper
from vitadapter.engine.settings import BestCheckpointSettings
from vitadapter.engine.train_loop import AccumulatingTrainer
from vitadapter.visualization.overlays import Palette
from vitadapter.visualization.predictions import Selection, class_names

__all__ = ["best_checkpointer", "pictures_hook", "register_updates"]


def register_updates(
    cfg: DictConfig,
    trainer: AccumulatingTrainer,
    checkpointer: AtomicCheckpointer,
    ema: WeightEMA | None,
    seed: int,
    scalars: ScalarKeeper,
) -> StateKeeper:
    """Registers what belongs to the updates of the weights, and what saves them.

    Returns:
        The hook that saves when training stops early.
    """
    keeper = StateKeeper(checkpointer)
    train = cfg.train
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=build(cfg.lr_multiplier, "lr_multiplier")),
            IterationSeed(seed),
            EMAHook(ema, checkpointer.model) if ema is not None else None,
            scalars,
            keeper,
        ]
    )
    checkpointer.max_to_keep = train.checkpointer.max_to_keep
    trainer.register_hooks([PeriodicSaver(checkpointer, train.checkpointer.period)])
    return keeper


def pictures_hook(
    cfg: DictConfig, evaluation: EvalHook, inference: nn.Module
) -> PicturesHook | None:
    """The hook that `train.pictures` asks for, if any."""
    wanted = cfg.train.pictures
    if wanted.period == 0:
        return None
    return PicturesHook(
        evaluation,
        period=wanted.period,
        eval_period=cfg.train.eval_period,
        number=wanted.number,
        selection=Selection(wanted.score_threshold),
        samples=indexed_samples(build(cfg.dataloader.test, "dataloader.test")),
        inference=inference,
        palette=Palette(class_names(class_metadata(cfg))),
        output_dir=cfg.train.output_dir,
    )


def best_checkpointer(
    cfg: DictConfig,
    evaluation: EvalHook,
    checkpointer: AtomicCheckpointer,
    evaluated: nn.Module,
    results: Mapping[str, Mapping[str, float]],
) -> BestCheckpointer | None:
    """The hook that `train.best_checkpoint` asks for, if any."""
    settings = BestCheckpointSettings(**cfg.train.best_checkpoint)
    if settings.metric is None:
        return None
    period = cfg.train.eval_period
    return BestCheckpointer(evaluation, period, checkpointer, evaluated, results, settings)
