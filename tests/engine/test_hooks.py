import itertools
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from coco_samples import make_content, write_coco
from detectron2.modeling.meta_arch import GeneralizedRCNN
from omegaconf import DictConfig
from torch.distributed.checkpoint import FileSystemWriter
from training_samples import act, last, load, metrics_of, raise_error, spoil_image

from vitadapter.engine import trainer as trainer_module
from vitadapter.engine.inference import InferenceModel
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.run_checks import SetupError
from vitadapter.engine.train_loop import AccumulatingTrainer
from vitadapter.engine.trainer import do_train


class SignallingAdamW(torch.optim.AdamW):
    """Gets SIGTERM in the middle of its second step."""

    steps = 0

    def step(self, closure: None = None) -> None:
        self.steps += 1
        if self.steps == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        super().step()


def raise_interrupt(sample: dict) -> None:
    raise KeyboardInterrupt


def send_signal(sample: dict) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def on_one_image(cfg: DictConfig, folder: Path) -> DictConfig:
    """So that a run's course does not depend on the order of the data, which a resume redraws."""
    paths = write_coco(folder / "one", make_content(images=1))
    cfg.dataset.train.json_file, cfg.dataset.train.image_root = paths
    cfg.dataloader.train.total_batch_size = 1
    cfg.dataloader.train.mapper.augmentations = []
    cfg.train.max_iter = 4
    return cfg


@pytest.mark.parametrize("stop", [raise_interrupt, raise_error, send_signal, spoil_image])
def test_stopped_and_resumed_equals_uninterrupted(
    cfg: DictConfig, tmp_path: Path, stop: Callable, caplog
) -> None:
    on_one_image(cfg, tmp_path)
    mapper = cfg.dataloader.train.mapper.copy()
    cfg.train.output_dir = str(tmp_path / "straight")
    torch.manual_seed(0)
    do_train(cfg)
    expected = load(cfg, "model_final.pth")

    cfg.train.output_dir = str(tmp_path / "stopped")
    act(cfg, stop, at=2)
    torch.manual_seed(0)
    expected_error = {raise_error: RuntimeError, spoil_image: FloatingPointError}
    error = expected_error.get(stop, KeyboardInterrupt)
    with caplog.at_level(logging.WARNING, "vitadapter"), pytest.raises(error):
        do_train(cfg)
    assert last(cfg) == "model_0000001.pth"
    assert load(cfg, "model_0000001.pth")["trainer"]["iteration"] == 1
    assert "2 of 4 iterations" in caplog.text
    assert "--resume" in caplog.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    cfg.dataloader.train.mapper = mapper
    do_train(cfg, resume=True)
    resumed = load(cfg, "model_final.pth")
    assert [r["iteration"] for r in metrics_of(cfg) if "total_loss" in r] == [0, 1, 2, 3]
    for key, value in expected["model"].items():
        torch.testing.assert_close(resumed["model"][key], value, atol=1e-6, rtol=1e-5)
    for index, moments in expected["trainer"]["optimizer"]["state"].items():
        torch.testing.assert_close(
            resumed["trainer"]["optimizer"]["state"][index], moments, atol=1e-6, rtol=1e-4
        )


def test_a_stopped_run_is_not_called_saved_before_it_is(
    cfg: DictConfig, monkeypatch, caplog
) -> None:
    def fail(self: FileSystemWriter, *arguments: object) -> None:
        raise OSError("the disk is away")

    cfg.train.parallel = "fsdp2"  # so that weights are written in the background
    monkeypatch.setattr(FileSystemWriter, "write_data", fail)
    act(cfg, raise_error, at=2)
    with pytest.raises(RuntimeError):
        do_train(cfg)
    assert "could not be written: the disk is away: --resume continues from the" in caplog.text
    assert "its state is saved" not in caplog.text


def test_a_signal_waits_for_the_end_of_the_update(cfg: DictConfig) -> None:
    cfg.optimizer._target_ = SignallingAdamW
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        do_train(cfg)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert last(cfg) == "model_0000001.pth"
    moments = load(cfg, "model_0000001.pth")["trainer"]["optimizer"]["state"]
    assert {float(m["step"]) for m in moments.values()} == {2.0}
    assert signal.getsignal(signal.SIGTERM) is handler


def signal_while(monkeypatch, owner: object, name: str, number: int, at: int = 1) -> None:
    """Sends a signal at the beginning and at the end of the `at`-th call of a function."""
    function, calls = getattr(owner, name), itertools.count(1)

    def send_and_call(*arguments: object, **options: object) -> object:
        number_of_call = next(calls)
        if number_of_call == at:
            os.kill(os.getpid(), number)
        result = function(*arguments, **options)
        if number_of_call == at:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(owner, name, send_and_call)


STOPS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]


@pytest.mark.parametrize(("number", "error"), STOPS)
@pytest.mark.parametrize(
    ("name", "at"), [("save", 1), ("save", 3)], ids=["periodic checkpoint", "final checkpoint"]
)
def test_a_signal_while_a_checkpoint_is_written(
    cfg: DictConfig, monkeypatch, number: int, error: type, name: str, at: int
) -> None:
    """Written are those of the iterations 1, 3 and the final one."""
    apply_overrides(cfg, ["train.checkpointer.period=2", "train.max_iter=4"])
    cfg.dataloader.evaluator = None
    signal_while(monkeypatch, torch, name, number, at)
    with pytest.raises(error) as stopped:
        do_train(cfg)
    assert number != signal.SIGTERM or stopped.value.code == 143
    assert last(cfg) == {1: "model_0000001.pth", 3: "model_final.pth"}[at]
    assert load(cfg, last(cfg))["iteration"] == at
    assert not list(Path(cfg.train.output_dir).glob("*partial*"))
    do_train(cfg, resume=True)
    assert load(cfg, "model_final.pth")["iteration"] == 3


@pytest.mark.parametrize(("number", "error"), STOPS)
@pytest.mark.parametrize("period", [2, 0])
def test_a_signal_stops_an_evaluation_at_once(
    cfg: DictConfig, monkeypatch, number: int, error: type, period: int
) -> None:
    def be_evaluated(*arguments: object) -> dict:
        os.kill(os.getpid(), number)
        raise AssertionError("it goes on")

    monkeypatch.setattr(trainer_module, "inference_on_dataset", be_evaluated)
    cfg.train.eval_period = period
    with pytest.raises(error):
        do_train(cfg)
    assert last(cfg) == ("model_0000001.pth" if period else "model_final.pth")


class Signalling:
    """Sends SIGTERM when it is freed, where Python ignores exceptions, the handler's too."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_that_is_lost_comes_with_the_next_batch(cfg: DictConfig, monkeypatch) -> None:
    forward, batches = InferenceModel.forward, []

    def free_and_predict(self: InferenceModel, batch: list[dict]) -> list[dict]:
        batches.append(batch)
        Signalling()
        return forward(self, batch)

    monkeypatch.setattr(InferenceModel, "forward", free_and_predict)
    cfg.train.eval_period = 2
    with pytest.raises(SystemExit) as stopped:
        do_train(cfg)
    assert stopped.value.code == 143
    assert len(batches) == 1  # of two
    assert last(cfg) == "model_0000001.pth"


@pytest.mark.parametrize(("number", "error"), STOPS)
def test_a_signal_in_the_last_iteration_leaves_the_final_checkpoint(
    cfg: DictConfig, monkeypatch, number: int, error: type
) -> None:
    signal_while(monkeypatch, torch.optim.AdamW, "step", number, at=3)
    with pytest.raises(error):
        do_train(cfg)
    assert last(cfg) == "model_final.pth"
    assert load(cfg, last(cfg))["trainer"]["iteration"] == 2


@pytest.mark.parametrize(("number", "error"), STOPS)
def test_a_worker_that_received_the_signal_too(
    cfg: DictConfig, monkeypatch, number: int, error: type, caplog
) -> None:
    """As where a scheduler signals all processes of a job."""

    def stop_all(self: object, *arguments: object) -> None:
        os.kill(os.getpid(), number)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, number)
            worker.join(1)

    cfg.dataloader.train.num_workers = 2
    cfg.train.max_iter = 50
    monkeypatch.setattr(AccumulatingTrainer, "after_backward", stop_all)
    with caplog.at_level(logging.ERROR), pytest.raises(error):
        do_train(cfg)
    assert last(cfg) == "model_0000000.pth"
    assert not caplog.records


def test_half_an_update_is_not_saved(cfg: DictConfig, monkeypatch, caplog) -> None:
    step, calls = torch.optim.AdamW.step, itertools.count(1)

    def run_out(self: torch.optim.AdamW) -> None:
        step(self)
        if next(calls) == 3:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", run_out)
    cfg.train.checkpointer.period = 1
    with pytest.raises(RuntimeError, match="out of memory"):
        do_train(cfg)
    assert "in the middle of the update of iteration 2 of 3, which is not saved" in caplog.text
    assert last(cfg) == "model_0000001.pth"


def test_a_second_interrupt_does_not_break_off_the_saving(cfg: DictConfig, monkeypatch) -> None:
    save = torch.save

    def interrupt_and_save(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        save(*arguments)

    monkeypatch.setattr(torch, "save", interrupt_and_save)
    act(cfg, raise_error, at=1)
    with pytest.raises(RuntimeError, match="out of memory"):
        do_train(cfg)
    assert last(cfg) == "model_0000000.pth"
    assert load(cfg, last(cfg))["trainer"]["iteration"] == 0


def test_stopped_in_the_first_iteration_saves_nothing(cfg: DictConfig, caplog) -> None:
    act(cfg, raise_interrupt, at=0)
    with caplog.at_level(logging.WARNING, "vitadapter"), pytest.raises(KeyboardInterrupt):
        do_train(cfg)
    assert not list(Path(cfg.train.output_dir).glob("*.pth"))
    assert "nothing to save" in caplog.text


def test_stopped_in_the_last_iteration_is_not_evaluated(cfg: DictConfig) -> None:
    act(cfg, raise_interrupt, at=2)
    with pytest.raises(KeyboardInterrupt):
        do_train(cfg)
    assert last(cfg) == "model_0000001.pth"
    assert not any("bbox/AP" in row for row in metrics_of(cfg))


def overflow_in_update(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the weights infinite or NaN in one of the updates, counted from 1."""
    step, calls = torch.optim.AdamW.step, itertools.count(1)

    def overflow(self: torch.optim.AdamW) -> None:
        if next(calls) == number:
            self.param_groups[0]["lr"] = float("inf")
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)


def test_weights_that_are_not_finite_are_not_saved(cfg: DictConfig, monkeypatch, caplog) -> None:
    overflow_in_update(1, monkeypatch)
    with caplog.at_level(logging.ERROR, "vitadapter"), pytest.raises(FloatingPointError):
        do_train(cfg)
    assert "NaN weights" in caplog.text
    assert not list(Path(cfg.train.output_dir).glob("*.pth"))


@pytest.mark.parametrize("period", [1, 100])
def test_an_update_that_overflows_leaves_no_checkpoint(
    cfg: DictConfig, period: int, monkeypatch, caplog
) -> None:
    """In the last iteration, so that no loss shows it."""
    overflow_in_update(3, monkeypatch)
    apply_overrides(cfg, [f"train.checkpointer.period={period}", "train.ema.enabled=True"])
    with pytest.raises(FloatingPointError, match=r" is infinite or NaN: .* is not written"):
        do_train(cfg)
    names = {path.name for path in Path(cfg.train.output_dir).glob("*.pth")}
    assert names == ({"model_0000000.pth", "model_0000001.pth"} if period == 1 else set())
    assert "--resume continues from the last checkpoint before" in caplog.text


class Masked(GeneralizedRCNN):
    """Keeps a constant among its weights."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.register_buffer("mask", torch.tensor([0.0, -float("inf")]))


def test_a_model_that_could_not_be_saved_is_refused(cfg: DictConfig) -> None:
    cfg.model._target_ = Masked
    with pytest.raises(SetupError, match=r"^mask of the model is .* before .*persistent=False"):
        do_train(cfg)
