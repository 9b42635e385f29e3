import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from coco_samples import make_content, write_coco
from omegaconf import DictConfig
from training_samples import act, last, load, metrics_of, raise_error, spoil_image

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


def test_weights_that_are_not_finite_are_not_saved(cfg: DictConfig, caplog) -> None:
    cfg.optimizer.lr = float("inf")
    with caplog.at_level(logging.ERROR, "vitadapter"), pytest.raises(FloatingPointError):
        do_train(cfg)
    assert "NaN weights" in caplog.text
    assert not list(Path(cfg.train.output_dir).glob("*.pth"))
