"""What two processes with parts of the weights do for the tests of them."""

import copy
import time
from pathlib import Path

import torch
from compiled_programs import Programs, modules_compiled_by
from detectron2.config import LazyConfig
from detectron2.utils import comm
from omegaconf import OmegaConf
from small_trainer import Batch, SmallModel, batches, error_of, run, samples
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from benchmarks.parallel_training import CASES, Result, build_run, train
from vitadapter.checkpoint.sharded import local_part
from vitadapter.engine.checkpoint import AtomicCheckpointer, load_init_checkpoint
from vitadapter.engine.ema import WeightEMA
from vitadapter.engine.launch import Place
from vitadapter.engine.parallel import FSDP2, PARALLEL
from vitadapter.engine.resume import find_and_resume
from vitadapter.engine.sharded_checkpoint import ShardedCheckpointer
from vitadapter.engine.train_loop import AccumulatingTrainer
from vitadapter.engine.trainer import do_train
from vitadapter.solver import ClippedAdamW

ITERATIONS, TOTAL_BATCH = 2, 2
MAX_NORM = 0.05
Weights = dict[str, Tensor]


def small_run(
    batch: Batch, size: int = 1, *, is_sharded: bool = True, **options: object
) -> tuple[AccumulatingTrainer, WeightEMA]:
    """A small model whose optimizer clips, and its average, for batches of so many samples."""
    model = SmallModel()
    ema = WeightEMA(model, decay=0.5, ramp_iters=0)
    if is_sharded:
        train_settings = OmegaConf.create({"device": "cpu"})
        for module in (model, ema.module):
            FSDP2().place(module, train_settings)
    optimizer = ClippedAdamW(model.parameters(), lr=0.1, max_norm=MAX_NORM)
    return AccumulatingTrainer(model, batches(batch, size), optimizer, **options), ema


def advance(trainer: AccumulatingTrainer, ema: WeightEMA, iterations: int) -> None:
    for iteration in range(iterations):
        run(trainer, 1)
        ema.update(trainer.model, iteration)


def weights_of(trainer: AccumulatingTrainer, ema: WeightEMA) -> Weights:
    """The whole weights and averages, in every process."""
    options = StateDictOptions(full_state_dict=True)
    return {
        f"{kind}.{name}": tensor.clone()
        for kind, model in (("model", trainer.model), ("ema", ema.module))
        for name, tensor in get_model_state_dict(model, options=options).items()
    }


def my_samples(place: Place, number: int) -> Batch:
    return samples(number)[place.rank :: place.world_size]


def resumed(folder: Path, place: Place) -> Weights:
    """Continues from a checkpoint after iteration 1 with the samples 4 to 7."""
    trainer, ema = small_run(my_samples(place, 8)[2:])
    checkpointer = ShardedCheckpointer(
        trainer.model, str(folder), trainer=trainer, model_ema=ema.module
    )
    found = find_and_resume(str(folder), checkpointer, trainer, ema)
    assert found is not None
    assert found[1] == 2
    advance(trainer, ema, 2)
    return weights_of(trainer, ema)


def save(folder: Path, checkpointer: AtomicCheckpointer, trainer: AccumulatingTrainer) -> None:
    folder.mkdir(exist_ok=True)
    trainer.iter = 1
    checkpointer.save("model_0000001", iteration=1)
    checkpointer.wait()


def faults(place: Place) -> list[str]:
    """What is said where something goes wrong in the second process only."""
    messages = []
    nan, gradient = {"image": torch.full((6,), float("nan"))}, {"gradient_factor": float("inf")}
    for fault in (nan, gradient):
        mine = copy.deepcopy(my_samples(place, 2))
        if place.rank == 1:
            mine[0].update(fault)
        messages.append(error_of(small_run(mine)[0]))
    trainer, _ = small_run(my_samples(place, 2))
    checkpointer = ShardedCheckpointer(trainer.model, "unused")
    if place.rank == 1:
        local_part(next(trainer.model.parameters())).fill_(float("nan"))
    try:
        checkpointer.save("model")
    except FloatingPointError as error:
        messages.append(str(error))
    return messages


def meets_while_it_saves(folder: Path, place: Place) -> bool:
    """Whether processes that stop can save while a part of the save before is still written."""
    write = FileSystemWriter.write_data

    def write_late(self: FileSystemWriter, *arguments: object) -> object:
        time.sleep(0.8 * place.rank)
        return write(self, *arguments)

    folder.mkdir(exist_ok=True)
    checkpointer = ShardedCheckpointer(SmallModel(), str(folder))
    FileSystemWriter.write_data = write_late
    checkpointer.save("model_0000000")
    time.sleep(0.4)  # the first process has written its part, and waits for the others
    can_save = checkpointer.can_save()
    FileSystemWriter.write_data = write
    checkpointer.save("model_0000001")
    checkpointer.wait()
    return can_save


def small_runs(folder: Path, place: Place) -> dict[str, object]:
    """Runs of the small model, through checkpoints of both kinds."""
    trainer, ema = small_run(my_samples(place, 8))
    sharded = folder / "sharded"
    sharded.mkdir(exist_ok=True)
    checkpointer = ShardedCheckpointer(
        trainer.model, str(sharded), trainer=trainer, model_ema=ema.module
    )
    checkpointer.carried = {"config": "some: text"}
    advance(trainer, ema, 2)
    # Like batch statistics, these are of each process its own.
    for buffer in (*trainer.model.buffers(), *ema.module.buffers()):
        buffer.add_(100 * place.rank)
    saved = weights_of(trainer, ema)
    save(sharded, checkpointer, trainer)
    advance(trainer, ema, 2)
    scaled, _ = small_run(my_samples(place, 2), amp_dtype=torch.float16)
    run(scaled, 1)
    started, _ = small_run([])
    load_init_checkpoint(AtomicCheckpointer(started.model), str(folder / "plain/model_0000001.pth"))
    accumulated, _ = small_run(my_samples(place, 8), accumulate_steps=2)
    run(accumulated, 2)
    first = next(trainer.model.parameters())
    return {
        "part": first.to_local().numel() / first.numel(),
        "saved": saved,
        "straight": weights_of(trainer, ema),
        "resumed": resumed(sharded, place),
        "from file": resumed(folder / "plain", place),
        "started": get_model_state_dict(
            started.model, options=StateDictOptions(full_state_dict=True)
        ),
        "accumulated": get_model_state_dict(
            accumulated.model, options=StateDictOptions(full_state_dict=True)
        ),
        "scaled": scaled.grad_scaler.get_scale(),
        "faults": faults(place),
        "meets": meets_while_it_saves(folder / "meeting", place),
    }


def detector_run(config: str, overrides: list[str]) -> None:
    """A whole run of the tiny detector, evaluated with its averaged weights."""
    cfg = LazyConfig.apply_overrides(LazyConfig.load(config), overrides)
    do_train(cfg)


def process(job: tuple[Path, str, list[str]], place: Place) -> None:
    """One of two processes; the first writes what it has found to the folder."""
    folder, config, overrides = job
    torch.set_num_threads(1)
    place.join("cpu")
    small = small_runs(folder, place)
    trained: dict[str, Result] = {}
    for name, case in CASES.items():
        cfg = case.load("fsdp2", place.world_size, TOTAL_BATCH)
        trained[name] = train(*build_run(cfg, is_double=case.is_double), ITERATIONS)
    for parallel in PARALLEL:
        cfg = CASES["Mask R-CNN"].load(parallel, place.world_size, TOTAL_BATCH)
        cfg.train.compile = True
        programs = Programs("aot_eager")
        with modules_compiled_by(programs):
            trained[f"compiled, {parallel}"] = train(*build_run(cfg), ITERATIONS)
        assert programs.number > 0
    detector_run(config, overrides)
    if comm.is_main_process():
        torch.save({"small": small, "trained": trained}, folder / "results.pt")
