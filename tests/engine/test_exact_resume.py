"""Whole runs that are killed or stopped and resumed, against one that was never stopped."""

import random
import shutil
from pathlib import Path

import pytest
from exact_runs import KilledRun, check_equal, data_overrides, rows_of
from omegaconf import DictConfig
from training_samples import act, load, raise_error

from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.trainer import do_train


@pytest.mark.parametrize(
    ("processes", "moments", "evaluations"), [(1, ["saved", "writing"], 3), (2, ["saved"], 2)]
)
def test_a_killed_run_equals_one_never_stopped(
    tmp_path: Path, processes: int, moments: list[str], evaluations: int
) -> None:
    """The short form of `exact_runs.py`."""
    overrides = [*data_overrides(tmp_path), f"train.max_iter={6 * (evaluations - 1) + 1}"]
    whole, killed = (
        KilledRun(tmp_path, name, processes, overrides) for name in ("whole", "killed")
    )
    seconds = whole.finish()
    rng = random.Random(0)
    for moment in moments:
        assert killed.kill(rng, 0.4 * seconds, moment) is not None
    killed.finish()
    assert check_equal(whole.output, killed.output)["evaluations"] == evaluations


@pytest.fixture
def watched(cfg: DictConfig) -> DictConfig:
    """The tiny config with everything that a stop could leave half done."""
    overrides = ["train.max_iter=7", "train.eval_period=2", "train.log_period=3"]
    return apply_overrides(
        cfg,
        [*overrides, "train.ema.enabled=True", "train.best_checkpoint.metric=bbox/AP"],
    )


def test_a_stopped_run_equals_one_never_stopped(watched: DictConfig) -> None:
    """After an error, such as of a signal, which leaves the last complete iteration."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    act(watched, raise_error, at=-1)
    whole = Path(watched.train.output_dir)
    do_train(watched)
    watched.train.output_dir += "_stopped"
    stopped = Path(watched.train.output_dir)
    for images in (2, 3):  # from each start on: an evaluation is the last, and is not
        watched.dataloader.train.mapper.at = images
        with pytest.raises(RuntimeError, match="out of memory"):
            do_train(watched, resume=True)
    assert '"note": "written when training was stopped"' in (stopped / "metrics.json").read_text()
    watched.dataloader.train.mapper.at = -1
    do_train(watched, resume=True)
    for file in stopped.glob("model_0*.pth"):  # of the stops
        file.unlink()
    counts = check_equal(whole, stopped)
    assert (counts["rows"], counts["evaluations"]) == (5, 3)
    curves = []
    for folder in (whole, stopped):
        # TensorBoard reads files by name, where the tenth writer of a second is before the ninth.
        for file in folder.glob("events.out.tfevents.*"):
            start, _, number = file.name.rpartition(".")
            file.rename(folder / f"{start}.{int(number):05d}")
        events = accumulator.EventAccumulator(str(folder)).Reload()
        points = {name: events.Scalars(name) for name in ("total_loss", "bbox/AP")}
        curves.append({k: [(p.step, p.value) for p in found] for k, found in points.items()})
    assert curves[0] == curves[1]


def test_a_run_without_a_seed_keeps_the_one_that_it_draws(watched: DictConfig, caplog) -> None:
    apply_overrides(watched, ["train.seed=-1", "train.checkpointer.period=1", "train.max_iter=3"])
    do_train(watched)
    whole = Path(watched.train.output_dir)
    first = load(watched, "model_final.pth")
    watched.train.output_dir += "_resumed"
    resumed = Path(watched.train.output_dir)
    resumed.mkdir()
    # As if it had been killed between the second checkpoint and the evaluation behind it.
    for number in (0, 1):
        shutil.copy(whole / f"model_000000{number}.pth", resumed)
    do_train(watched, resume=True)
    assert check_equal(whole, resumed)["files"] == 5
    # Another run draws another one.
    watched.train.output_dir += "_anew"
    do_train(watched)
    assert load(watched, "model_final.pth")["seed"] != first["seed"]
    assert rows_of(Path(watched.train.output_dir)) != rows_of(whole)
