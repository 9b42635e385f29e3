import logging
from pathlib import Path

import pytest
from detectron2.utils.events import EventWriter
from omegaconf import DictConfig, OmegaConf
from training_samples import act, raise_error

from vitadapter.engine import trackers
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.run_checks import SetupError
from vitadapter.engine.trackers import Tracker
from vitadapter.engine.trainer import do_train


class OwnWriter(EventWriter):
    """Notes what happens to it in a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def write(self) -> None:
        with self.path.open("a") as file:
            file.write("write ")

    def close(self) -> None:
        with self.path.open("a") as file:
            file.write("close")


class Unreachable(Tracker):
    """A tracker whose server takes nothing."""

    package = "json"  # which is there

    def _start(self, run_id, config) -> str:
        return "run"

    def _log(self, iteration, scalars, pictures) -> None:
        raise ConnectionError("no server")

    def _close(self, has_failed) -> None:
        raise ConnectionError("no server")


def lazy(target: str, **arguments: object) -> dict[str, object]:
    return {"_target_": target, **arguments}


@pytest.fixture
def short(cfg: DictConfig) -> DictConfig:
    return apply_overrides(cfg, ["train.max_iter=2", "dataloader.evaluator=null"])


@pytest.mark.parametrize("fails", [False, True])
def test_a_writer_of_ones_own_is_closed_whatever_happens(
    short: DictConfig, tmp_path: Path, fails: bool
) -> None:
    short.train.writers = [{"_target_": OwnWriter, "path": str(tmp_path / "written")}]
    if fails:
        act(short, raise_error, at=1)
        with pytest.raises(RuntimeError, match="out of memory"):
            do_train(short)
    else:
        do_train(short)
    # After each iteration and after training.
    writes = 2 if fails else 3
    assert (tmp_path / "written").read_text().split() == [*writes * ["write"], "close"]
    # The default is replaced.
    assert not list(Path(short.train.output_dir).glob("events*"))


def test_training_survives_a_tracker_that_is_away(short: DictConfig, caplog) -> None:
    short.train.writers = [{"_target_": Unreachable, "output_dir": "${train.output_dir}"}]
    with caplog.at_level(logging.WARNING, "vitadapter"):
        do_train(short)
    assert "json did not take iteration 1: no server" in caplog.text
    assert "json could not end the run: no server" in caplog.text


@pytest.mark.parametrize(
    ("writers", "message"),
    [
        (["wanddb"], r"a list of tensorboard, wandb, mlflow .*got \['wanddb'\]"),
        ("wandb", r"a list of tensorboard, .*got 'wandb'"),
        (["wandb", "wandb"], r"each once"),
        ([3], r"a list of"),
        ([{"project": "mine"}], r"a list of"),
        ([lazy("collections.OrderedDict")], r"train\.writers\.0 must build a .*EventWriter"),
        ([lazy("vitadapter.engine.trackers.WandbWriter")], r"train\.writers\.0 .*output_dir"),
    ],
)
def test_writers_that_cannot_be_built(short: DictConfig, writers: object, message: str) -> None:
    OmegaConf.update(short, "train.writers", writers)
    with pytest.raises(SetupError, match=message):
        do_train(short)


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package(short: DictConfig, package: str, monkeypatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    short.train.writers = [package]
    with pytest.raises(SetupError, match=rf"pip install 'vitadapter\[{package}\]'"):
        do_train(short)
    assert not Path(short.train.output_dir).exists()
