"""Training and evaluation of a LazyConfig, like Detectron2's `lazyconfig_train_net.py`.

In addition, everything that can be checked is checked before the first iteration, and training that
stops early, for whatever reason, leaves a checkpoint to resume from.
"""

import contextlib
import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from detectron2.data import MapDataset
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from omegaconf import DictConfig, ListConfig
from torch.distributed.tensor import DTensor

from vitadapter.data.folders.listing import image_facts
from vitadapter.engine.agreement import share_buffers
from vitadapter.engine.batch_norm_checks import check_batch_norms
from vitadapter.engine.building import build
from vitadapter.engine.checkpoint import (
    FINAL_NAME,
    LAST_NAME,
    AtomicCheckpointer,
    evaluation_iteration,
    find_not_finite,
    load_init_checkpoint,
)
from vitadapter.engine.checkpoint_config import class_entries, config_to_text
from vitadapter.engine.compiled_parts import EagerModel, compile_parts
from vitadapter.engine.config_differences import name_differences
from vitadapter.engine.data_order import OrderedLoader, batch_size_of, seed_process
from vitadapter.engine.ema import WeightEMA
from vitadapter.engine.hooks import EvalHook
from vitadapter.engine.inference import apply_tiles, apply_tta, build_inference, tiles_of
from vitadapter.engine.parallel import PARALLEL, Parallel, whole
from vitadapter.engine.predictor import class_metadata
from vitadapter.engine.published import log_published
from vitadapter.engine.restarts import is_restart, note_run
from vitadapter.engine.resume import Content, find_and_resume, peek_checkpoint
from vitadapter.engine.run_checks import check_run, check_same_classes, setup_errors
from vitadapter.engine.run_hooks import best_checkpointer, pictures_hook, register_updates
from vitadapter.engine.run_lock import RunLock
from vitadapter.engine.run_log import RunLog
from vitadapter.engine.run_report import final_report
from vitadapter.engine.scalars import MetricsWriter, ScalarKeeper, kept_rows
from vitadapter.engine.settings import check_settings, expand_home
from vitadapter.engine.sharded_checkpoint import ShardedCheckpointer, recover
from vitadapter.engine.train_loop import AccumulatingTrainer
from vitadapter.engine.writers import WriterHook, open_writers, plain_config
from vitadapter.visualization.metrics_file import METRICS_NAME

__all__ = [
    "build_ema",
    "build_evaluation",
    "build_trainer",
    "do_eval_only",
    "do_test",
    "do_train",
    "evaluate_only",
]

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, float]]
Batch = list[dict[str, object]]
Found = tuple[Path, Content] | None


def _evaluator_folder(cfg: DictConfig) -> Path | None:
    """Where the evaluator writes predictions, if it does."""
    folder = (cfg.dataloader.get("evaluator") or {}).get("output_dir")
    return Path(folder) if folder else None


def _check_tiles(cfg: DictConfig) -> None:
    """Refuses test images that are too large for `train.inference.tiles`, before any is predicted.

    Raises:
        ValueError: names the first one.
    """
    tiles = tiles_of(cfg)
    if tiles is None:
        return
    fitting: set[tuple[int, int]] = set()
    for record in build(cfg.dataloader.test.dataset, "dataloader.test.dataset"):
        name = record["file_name"]
        size = (record["height"], record["width"]) if "height" in record else image_facts(name).size
        if size not in fitting:
            try:
                tiles.of(*size)
            except ValueError as error:
                raise ValueError(f"train.inference.tiles: {error} (of {name})") from error
            fitting.add(size)


def _check_first_image(loader: object) -> None:
    """Reads a test image, since data of another kind, such as of more channels, fail at the first.

    Raises:
        ValueError, OSError: it cannot be read as the config says.
    """
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, MapDataset) and len(dataset) > 0:
        dataset[0]


def build_evaluation(cfg: DictConfig) -> Callable[[torch.nn.Module], Results]:
    """Loads the test data now, so that faults in it are found before training.

    Call it before the model is built, since test-time augmentation may change the model's settings.

    Args:
        cfg: the whole config; `dataloader.test` and `dataloader.evaluator` are used.

    Returns:
        What evaluates a model that takes Detectron2's list of dicts: see `do_test`.

    Raises:
        ValueError, OSError: the data or its evaluator cannot be built.
    """
    apply_tta(cfg)
    apply_tiles(cfg)
    if cfg.dataloader.get("evaluator") is None:
        return lambda model: {}
    loader = build(cfg.dataloader.test, "dataloader.test")
    _check_tiles(cfg)
    _check_first_image(loader)
    evaluator = build(cfg.dataloader.evaluator, "dataloader.evaluator")
    if folder := _evaluator_folder(cfg):
        folder.mkdir(parents=True, exist_ok=True)

    def evaluate(model: torch.nn.Module) -> Results:
        with whole(model):
            results = inference_on_dataset(model, loader, evaluator)
        if comm.is_main_process():
            print_csv_format(results)
        return results

    return evaluate


def _build_optimizer(cfg: DictConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    optimizer_cfg = copy.deepcopy(cfg.optimizer)
    optimizer_cfg.params.model = model
    optimizer = build(optimizer_cfg, "optimizer")
    for group in (optimizer.defaults, *optimizer.param_groups):
        for key, value in group.items():
            # A ListConfig (betas) would bring the whole config, with the model, into checkpoints,
            # which torch.load then refuses to read.
            if isinstance(value, ListConfig):
                group[key] = tuple(value)
    for group in optimizer.param_groups:
        # PyTorch would update them one by one, which takes five times as long on the CPU.
        is_sharded = all(isinstance(parameter, DTensor) for parameter in group["params"])
        if is_sharded and "foreach" in group and group["foreach"] is None:
            group["foreach"] = not group.get("fused")
    return optimizer


def _found(cfg: DictConfig) -> Found:
    """The checkpoint that a run continues from, if there is one; warns where its config differs."""
    if comm.is_main_process():
        recover(Path(cfg.train.output_dir))
    comm.synchronize()
    found = peek_checkpoint(cfg.train.output_dir)
    if found is not None:
        name_differences(found[0], found[1].get("config"), cfg)
    return found


def _run_seed(cfg: DictConfig, found: Found) -> int:
    """The seed of the config, or that of the run, which has drawn one if the config has none."""
    if cfg.train.seed >= 0:
        return cfg.train.seed
    drawn = found[1].get("seed") if found is not None else None
    if not isinstance(drawn, int) or drawn < 0:
        drawn = comm.shared_random_seed()
    logger.info("train.seed=%d: this run draws the seed %d and keeps it", cfg.train.seed, drawn)
    return drawn


def _build_loader(cfg: DictConfig, seed: int) -> OrderedLoader:
    """Builds the loader of micro-batches; `train.accumulate_steps` of them make a total batch."""
    loader_cfg = copy.deepcopy(cfg.dataloader.train)
    if cfg.train.accumulate_steps > 1:
        loader_cfg.total_batch_size //= cfg.train.accumulate_steps
    # Samplers draw the seed of their order, which has to be the same at every start.
    seed_process(seed)
    return OrderedLoader(build(loader_cfg, "dataloader.train"), seed)


def parallel_of(cfg: DictConfig) -> Parallel:
    """How the processes of a run share the work."""
    return PARALLEL[cfg.train.parallel]()


def checkpointer_class(cfg: DictConfig) -> type[AtomicCheckpointer]:
    """What saves the checkpoints of a run."""
    return ShardedCheckpointer if parallel_of(cfg).is_sharded else AtomicCheckpointer


def build_trainer(
    cfg: DictConfig, model: torch.nn.Module, loader: Iterable[Batch]
) -> AccumulatingTrainer:
    """Builds what trains `model` on `train.device`, with the batches of `loader`."""
    logger.info("Model:\n%s", model)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size * grad for size, grad in sizes)
    logger.info("Parameters: %.3f M, of which %.3f M are trained", total / 1e6, trained / 1e6)
    check_batch_norms(model, cfg.train.device, batch_size_of(loader))
    if cfg.train.compile:
        compile_parts(model)
    wrapped = parallel_of(cfg).wrap(model, cfg.train)
    amp = cfg.train.amp
    return AccumulatingTrainer(
        wrapped,
        loader,
        # Of the weights that training changes, which may be parts of the model's.
        _build_optimizer(cfg, model),
        accumulate_steps=cfg.train.accumulate_steps,
        amp_dtype=getattr(torch, amp.dtype) if amp.enabled else None,
        init_scale=amp.init_scale,
    )


def build_ema(cfg: DictConfig, model: torch.nn.Module) -> WeightEMA | None:
    """Builds the average that `train.ema` of a config asks for, if any.

    Call it before the model is wrapped for training, since parts of weights cannot be copied.
    """
    if not cfg.train.ema.enabled:
        return None
    ema = WeightEMA(model, decay=cfg.train.ema.decay, ramp_iters=cfg.train.ema.ramp_iters)
    parallel_of(cfg).place(ema.module, cfg.train)
    return ema


def _restore(
    cfg: DictConfig,
    trainer: AccumulatingTrainer,
    checkpointer: AtomicCheckpointer,
    ema: WeightEMA | None,
    resume: bool,
) -> tuple[int, bool]:
    """Loads what training starts from.

    Returns:
        The iteration to start with, and whether a finished run has ended there.
    """
    folder = cfg.train.output_dir
    found = find_and_resume(folder, checkpointer, trainer, ema) if resume else None
    if found is not None:
        path, start = found
        return start, path.stem == FINAL_NAME
    load_init_checkpoint(
        checkpointer, cfg.train.init_checkpoint, allow_partial=cfg.train.init_allow_partial
    )
    if ema is not None:
        ema.reset(checkpointer.model)
    if wrong := find_not_finite(checkpointer.model.state_dict()):
        raise ValueError(
            f"{wrong} of the model is infinite or NaN before the first iteration: such a model "
            "cannot be saved (register the buffer of a constant with persistent=False)"
        )
    return 0, False


def _evaluate_at(
    iteration: int, evaluate: Callable[[], Results], writers: Sequence[EventWriter]
) -> Results:
    """Evaluates, and writes the metrics like the evaluation after training."""
    with EventStorage(iteration) as storage:
        results = evaluate()
        storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
        for writer in writers:
            writer.write()
    return results


def do_test(cfg: DictConfig, model: torch.nn.Module) -> Results:
    """Evaluates `model` on the test set of `cfg` and prints the table.

    Args:
        cfg: the whole config; `dataloader.test`, `dataloader.evaluator` and `train.inference` are
            used.
        model: the model, on its device; its training mode is restored.

    Returns:
        Metrics by task, for instance `{"bbox": {"AP": ...}}`; empty without an evaluator
        and in all processes but the first.
    """
    return build_evaluation(cfg)(build_inference(cfg, model))


def evaluate_only(cfg: DictConfig, load: Callable[[], tuple[torch.nn.Module, int]]) -> Results:
    """Evaluates a model, and logs and keeps the results as a run does.

    Args:
        cfg: the whole config.
        load: returns the model, which takes Detectron2's list of dicts, and the iteration of its
            weights; is called once the data is known.

    Returns:
        As `do_test`.

    Raises:
        SetupError: the config or the data is unusable, or `load` raises ValueError or OSError.
    """
    with contextlib.ExitStack() as held:
        with setup_errors():
            check_run(cfg, eval_only=True)
            log = held.enter_context(RunLog(cfg.train.output_dir))
            # Where a run was trained, its config stays.
            log.describe(cfg, is_kept=not Path(cfg.train.output_dir, LAST_NAME).exists())
            evaluate = build_evaluation(cfg)
            model, iteration = load()
            log.start()
        writers = []
        if comm.is_main_process():
            writers.append(MetricsWriter(Path(cfg.train.output_dir, METRICS_NAME)))
        results = _evaluate_at(iteration, lambda: evaluate(model), writers)
        log_published(cfg.train.init_checkpoint, flatten_results_dict(results))
        log.end(_evaluator_folder(cfg), final_report(cfg))
    return results


def do_eval_only(cfg: DictConfig) -> Results:
    """Evaluates the weights of `train.init_checkpoint`.

    With `train.ema.enabled`, these are the averaged weights if the file has them.

    Args:
        cfg: the whole config.

    Returns:
        As `do_test`.

    Raises:
        SetupError: the weights are incomplete or those of another model, or the data is unusable.
    """

    def load() -> tuple[torch.nn.Module, int]:
        model = build(cfg.model, "model").to(cfg.train.device)
        inference = build_inference(cfg, model)
        weights = cfg.train.init_checkpoint
        checkpointer = AtomicCheckpointer(model)
        load_init_checkpoint(checkpointer, weights, complete=True, averaged=cfg.train.ema.enabled)
        return inference, evaluation_iteration(weights)

    return evaluate_only(cfg, load)


def _carried_config(cfg: DictConfig) -> dict[str, object]:
    """The entry of checkpoints that has the config; none if others could not read it safely."""
    try:
        return {"config": config_to_text(cfg)}
    except ValueError as error:
        logger.warning("Checkpoints will not carry the config, but its classes' names: %s", error)
        return {}


def _train(cfg: DictConfig, resume: bool, log: RunLog) -> Results:
    """The part of `do_train` for which the output folder is locked."""
    results: Results = {}

    def evaluate_and_keep() -> Results:
        share_buffers(evaluated)
        results.clear()
        results.update(evaluate(inference))
        return results

    with setup_errors():
        log.describe(cfg)
        # Before test-time augmentation changes the config.
        carried, config = _carried_config(cfg), plain_config(cfg)
        seed = _run_seed(cfg, _found(cfg) if resume else None)
        loader = _build_loader(cfg, seed)
        evaluate = build_evaluation(cfg)
        check_same_classes(cfg)
        model = build(cfg.model, "model")
        ema = build_ema(cfg, model)
        trainer = build_trainer(cfg, model, loader)
        kind = checkpointer_class(cfg)
        checkpointer = kind(trainer.model, cfg.train.output_dir, trainer=trainer)
        # Now that the data sets are read, the names of their classes are known.
        classes = class_entries(class_metadata(cfg))
        checkpointer.carried = {**carried, "classes": classes, "seed": seed}
        if ema is not None:
            checkpointer.add_checkpointable("model_ema", ema.module)
        evaluated = checkpointer.model if ema is None else ema.module
        # Built now, so that a fault of train.inference is found before training.
        inference = build_inference(cfg, evaluated)
        if cfg.train.compile:
            inference = EagerModel(inference)
        # Before each batch, since the exception of a signal is lost if it interrupts a destructor.
        inference.register_forward_pre_hook(lambda *_: trainer.stop_signals.check())
        scalars = ScalarKeeper()
        keeper = register_updates(cfg, trainer, checkpointer, ema, seed, scalars)
        evaluation = EvalHook(cfg.train.eval_period, evaluate_and_keep)
        best = best_checkpointer(cfg, evaluation, checkpointer, evaluated, results)
        # Each of them looks at the evaluation.
        later = [evaluation, pictures_hook(cfg, evaluation, inference), best]
        trainer.register_hooks(later)
        start, is_final = _restore(cfg, trainer, checkpointer, ema, resume)
        if best is not None and start > 0:
            best.resume(start)
        ended_early = is_final and best is not None and best.is_exhausted(start)
        is_finished = ended_early or start >= cfg.train.max_iter
        keeper.lacks_final = is_finished and not is_final
    with contextlib.ExitStack() as held:
        with setup_errors():
            kept = kept_rows(
                Path(cfg.train.output_dir, METRICS_NAME),
                start,
                keeps_result=is_final and not is_finished,
            )
            opened = open_writers(cfg.train, config, is_resumed=start > 0, kept=kept)
            writers = held.enter_context(opened)
            log.start()
        periodic = WriterHook(writers, cfg.train.log_period)
        scalars.last_written = periodic.last_written
        trainer.register_hooks([periodic])
        # Where the last row is written, everything of its iteration has been done.
        is_complete = comm.all_gather(kept.is_complete)[0]
        unfinished = [] if is_finished or is_complete else [*filter(None, later), periodic]
        if is_finished:
            logger.info("The run is finished, after %d iterations: only evaluating", start)
        trainer.train(start, start if is_finished else cfg.train.max_iter, unfinished)
        checkpointer.wait()
    log.end(_evaluator_folder(cfg), final_report(cfg))
    return results


def do_train(cfg: DictConfig, resume: bool = False) -> Results:
    """Trains, and evaluates every `train.eval_period` iterations and at the end.

    An iteration is an update of the weights, by `train.accumulate_steps` batches of the loader.
    Checkpoints, `metrics.json` (losses, learning rate, APs) and tensorboard events are written to
    `train.output_dir`, which is locked meanwhile. With `train.ema`, checkpoints also have the
    averaged weights, and these are evaluated. With `train.best_checkpoint`, `model_best.pth` has
    the weights of the best evaluation. All of them carry the config and the names of the classes,
    so that `LazyPredictor` needs nothing else. When an error, Ctrl-C or SIGTERM stops training
    early, the last complete iteration is saved. A resumed run equals one that was never stopped,
    bit for bit on the same machine if its operators are deterministic.

    Args:
        cfg: the whole config, with model, dataloader.{train,test,evaluator}, optimizer,
            lr_multiplier and train. Settings that `train` lacks are filled in.
        resume: whether to continue from the last good checkpoint of `train.output_dir`, if it has
            checkpoints. It does so without being asked if torchrun has started the run again.

    Returns:
        As `do_test`, of the last evaluation.

    Raises:
        SetupError: something cannot work; raised before training starts.
        FloatingPointError: a loss, the gradient or a weight became infinite or NaN. The message
            names the images of the iteration, or the weight.
    """
    with contextlib.ExitStack() as held:
        with setup_errors():
            check_settings(cfg)
            resume = resume or is_restart(expand_home(cfg.train.output_dir))
            check_run(cfg, resume=resume)
            log = held.enter_context(RunLog(cfg.train.output_dir))
            held.enter_context(RunLock(cfg.train.output_dir))
            note_run(cfg.train.output_dir)
        return _train(cfg, resume, log)
