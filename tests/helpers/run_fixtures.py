"""Fixtures of whole runs: a tiny detector and data; what a run changes in a process is put back."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from coco_samples import make_content, write_coco
from detectron2.config import LazyConfig
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

__all__ = [
    "cfg",
    "default_signals",
    "one_thread",
    "overrides",
    "restored_logging",
    "tiny_config",
]

TINY_CONFIG = Path(__file__).with_name("tiny_mask_rcnn.py")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tiny detector is slower on two threads than on one, much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def default_signals() -> Iterator[None]:
    """As in a foreground shell: tests started with `nohup ... &` inherit an ignored SIGINT."""
    wanted = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def tiny_config() -> Path:
    """The config file of the tiny Mask R-CNN."""
    return TINY_CONFIG


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """What points the tiny config at 4 training and 2 test images and a fresh output folder."""
    train = write_coco(tmp_path / "train", make_content(images=4))
    test = write_coco(tmp_path / "test", make_content(images=2))
    return [
        f"dataset.train.json_file={train[0]}",
        f"dataset.train.image_root={train[1]}",
        f"dataset.test.json_file={test[0]}",
        f"dataset.test.image_root={test[1]}",
        f"train.output_dir={tmp_path / 'output'}",
    ]


@pytest.fixture
def cfg(overrides: list[str]) -> DictConfig:
    """The tiny config on the tiny data."""
    return LazyConfig.apply_overrides(LazyConfig.load(str(TINY_CONFIG)), overrides)


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Undoes `default_setup`, whose handlers and propagation would outlive the test."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "vitadapter")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
    setup_logger.cache_clear()
