"""Training and evaluation of a LazyConfig, as Detectron2's `lazyconfig_train_net.py` does it.

Beyond it: whatever can be checked is checked before the first iteration, and training that stops
early, for whatever reason, leaves a checkpoint to resume from.
"""

import copy
import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from omegaconf import DictConfig, ListConfig, OmegaConf

from vitadapter.data.coco import coco_metadata
from vitadapter.engine.checkpoint import (
    AtomicCheckpointer,
    check_weights_exist,
    load_init_checkpoint,
)
from vitadapter.engine.hooks import EvalHook, StateKeeper

__all__ = ["check_run", "do_eval_only", "do_test", "do_train"]

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, float]]
Batch = list[dict[str, object]]


class _RecordingLoader:
    """Passes the batches on and remembers the file names of the last one."""

    def __init__(self, loader: Iterable[Batch]) -> None:
        self._loader = loader
        self.file_names: list[str] = []

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            self.file_names = [str(sample.get("file_name", "?")) for sample in batch]
            yield batch


def _check_device(train: DictConfig, eval_only: bool) -> None:
    device = torch.device(train.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"train.device={train.device} but PyTorch finds no GPU: set train.device=cpu"
        )
    if train.amp.enabled and device.type != "cuda" and not eval_only:
        raise ValueError(
            "train.amp.enabled=True needs a GPU, "
            f"got train.device={train.device}: set train.amp.enabled=False"
        )


def check_run(cfg: DictConfig, *, resume: bool = False, eval_only: bool = False) -> None:
    """Refuses settings that cannot work or would overwrite a run; builds and writes nothing.

    Args:
        cfg: the whole config, of which `cfg.train` is looked at.
        resume: whether training goes on from the last checkpoint of the output folder.
        eval_only: whether `train.init_checkpoint` is only evaluated.

    Raises:
        ValueError: the message names the override to change.
    """
    train = cfg.train
    _check_device(train, eval_only)
    if not train.output_dir:
        raise ValueError(f"train.output_dir must name a folder, got {train.output_dir!r}")
    if not isinstance(train.max_iter, int) or train.max_iter < 1:
        raise ValueError(f"train.max_iter must be a positive integer, got {train.max_iter!r}")
    occupied = Path(train.output_dir, "last_checkpoint").is_file()
    if eval_only and not train.init_checkpoint:
        raise ValueError(
            "--eval-only needs weights: set train.init_checkpoint=... "
            f"(for instance {train.output_dir}/model_final.pth)"
        )
    if occupied and not resume and not eval_only:
        raise ValueError(
            f"train.output_dir={train.output_dir} already holds checkpoints: "
            "add --resume to continue that run, or set another train.output_dir=..."
        )
    if train.init_checkpoint and not (occupied and resume):
        check_weights_exist(train.init_checkpoint)


def _check_same_classes(cfg: DictConfig) -> None:
    """AP would be meaningless if training and test data numbered their classes differently."""
    if OmegaConf.select(cfg, "dataset.train") is None:
        return
    sets = (cfg.dataset.train, cfg.dataset.test)
    train, test = (
        coco_metadata(s.name, s.json_file, s.image_root).get("thing_classes") for s in sets
    )
    if train and test and list(train) != list(test):
        at = next(i for i, pair in enumerate(zip(train, test, strict=True)) if len(set(pair)) > 1)
        raise ValueError(
            f"class {at} is {train[at]!r} in the training data but {test[at]!r} in the test data: "
            "set dataset.train.json_file=... or dataset.test.json_file=... so that they agree"
        )


def _build_evaluation(cfg: DictConfig) -> Callable[[torch.nn.Module], Results]:
    """Loads the test data now, so that its faults are found before training."""
    if "evaluator" not in cfg.dataloader:
        return lambda model: {}
    loader = instantiate(cfg.dataloader.test)
    evaluator = instantiate(cfg.dataloader.evaluator)

    def evaluate(model: torch.nn.Module) -> Results:
        results = inference_on_dataset(model, loader, evaluator)
        if comm.is_main_process():
            print_csv_format(results)
        return results

    return evaluate


def _build_optimizer(cfg: DictConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    optimizer_cfg = copy.deepcopy(cfg.optimizer)
    optimizer_cfg.params.model = model
    optimizer = instantiate(optimizer_cfg)
    for group in (optimizer.defaults, *optimizer.param_groups):
        for key, value in group.items():
            # A ListConfig (betas) would drag the whole config, model included, into checkpoints
            # that torch.load then refuses to read.
            if isinstance(value, ListConfig):
                group[key] = tuple(value)
    return optimizer


def _build_trainer(cfg: DictConfig, loader: Iterable[Batch]) -> SimpleTrainer:
    model = instantiate(cfg.model)
    logger.info("Model:\n%s", model)
    model.to(cfg.train.device)
    optimizer = _build_optimizer(cfg, model)
    ddp = dict(cfg.train.ddp)
    if torch.device(cfg.train.device).type == "cpu":
        ddp.setdefault("device_ids", None)
    model = create_ddp_model(model, **ddp)
    return (AMPTrainer if cfg.train.amp.enabled else SimpleTrainer)(model, loader, optimizer)


def _build_writers(output_dir: str, max_iter: int) -> list[EventWriter]:
    writers = [
        CommonMetricPrinter(max_iter),
        JSONWriter(str(Path(output_dir, "metrics.json"))),
    ]
    if importlib.util.find_spec("tensorboard") is not None:
        writers.append(TensorboardXWriter(output_dir))
    else:
        logger.warning("tensorboard is not installed: curves are written to metrics.json only")
    return writers


def _build_hooks(
    cfg: DictConfig, checkpointer: AtomicCheckpointer, evaluate: Callable[[], Results]
) -> list[HookBase]:
    train = cfg.train
    built = [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        StateKeeper(checkpointer),
    ]
    if comm.is_main_process():
        built.append(hooks.PeriodicCheckpointer(checkpointer, **train.checkpointer))
    built.append(EvalHook(train.eval_period, evaluate))
    if comm.is_main_process():
        writers = _build_writers(train.output_dir, train.max_iter)
        built.append(hooks.PeriodicWriter(writers, period=train.log_period))
    return built


def _resume(checkpointer: AtomicCheckpointer, trainer: SimpleTrainer) -> int:
    """Restores the whole state of the last checkpoint; returns the iteration to go on with."""
    path = checkpointer.get_checkpoint_file()
    if not Path(path).is_file():
        others = sorted(Path(name).name for name in checkpointer.get_all_checkpoint_files())
        raise ValueError(
            f"{checkpointer.save_dir}/last_checkpoint names {Path(path).name}, which does not "
            f"exist: write one of {others} into it"
        )
    checkpointer.load(path)
    return trainer.iter + 1


def do_test(cfg: DictConfig, model: torch.nn.Module) -> Results:
    """Evaluates `model` on the test set of `cfg` and prints the table.

    Args:
        cfg: its `dataloader.test` and `dataloader.evaluator` are used.
        model: on its device; its training mode is kept.

    Returns:
        dict: metrics by task, for instance `{"bbox": {"AP": ...}}`; empty without an evaluator
        and in all processes but the first.
    """
    return _build_evaluation(cfg)(model)


def do_eval_only(cfg: DictConfig) -> Results:
    """Evaluates the weights of `train.init_checkpoint`.

    Args:
        cfg: the whole config.

    Returns:
        dict: as :func:`do_test`.

    Raises:
        ValueError: missing weights or unusable data.
    """
    check_run(cfg, eval_only=True)
    evaluate = _build_evaluation(cfg)
    model = instantiate(cfg.model).to(cfg.train.device)
    load_init_checkpoint(AtomicCheckpointer(model), cfg.train.init_checkpoint)
    return evaluate(model)


def do_train(cfg: DictConfig, resume: bool = False) -> Results:
    """Trains, evaluates every `train.eval_period` iterations and at the end.

    Checkpoints, `metrics.json` (losses, learning rate, APs) and tensorboard events are written to
    `train.output_dir`. When training stops early - an error, Ctrl-C, SIGTERM - the last complete
    iteration is saved.

    Args:
        cfg: with model, dataloader.{train,test,evaluator}, optimizer, lr_multiplier, train.
        resume: whether to go on from the last checkpoint of `train.output_dir`, if it has one.

    Returns:
        dict: as :func:`do_test`, of the last evaluation.

    Raises:
        ValueError: what cannot work, before training starts.
        FloatingPointError: the loss became infinite or NaN; names the images.
    """
    check_run(cfg, resume=resume)
    Path(cfg.train.output_dir).mkdir(parents=True, exist_ok=True)
    loader = _RecordingLoader(instantiate(cfg.dataloader.train))
    evaluate = _build_evaluation(cfg)
    _check_same_classes(cfg)
    trainer = _build_trainer(cfg, loader)
    checkpointer = AtomicCheckpointer(trainer.model, cfg.train.output_dir, trainer=trainer)
    results: Results = {}

    def evaluate_and_keep() -> Results:
        results.clear()
        results.update(evaluate(trainer.model))
        return results

    trainer.register_hooks(_build_hooks(cfg, checkpointer, evaluate_and_keep))
    start = 0
    if resume and checkpointer.has_checkpoint():
        start = _resume(checkpointer, trainer)
    else:
        load_init_checkpoint(checkpointer, cfg.train.init_checkpoint)
    if start >= cfg.train.max_iter:
        logger.info("All %d iterations are done already: only evaluating", cfg.train.max_iter)
        return evaluate_and_keep()
    try:
        trainer.train(start, cfg.train.max_iter)
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{error}\niteration {trainer.iter}, images: {', '.join(loader.file_names)}"
        ) from error
    return results
