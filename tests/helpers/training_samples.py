"""What tests of training runs look at and meddle with."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig

from vitadapter.data.dataset_mapper import DatasetMapper


def metrics_of(cfg: DictConfig) -> list[dict]:
    """The rows of a run's `metrics.json`."""
    lines = Path(cfg.train.output_dir, "metrics.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def load(cfg: DictConfig, name: str) -> dict:
    """A checkpoint of a run."""
    return torch.load(Path(cfg.train.output_dir, name), weights_only=True)


def last(cfg: DictConfig) -> str:
    """The name of the checkpoint that a resumed run loads."""
    return Path(cfg.train.output_dir, "last_checkpoint").read_text()


def predictions_of(folder: str | Path) -> list[dict]:
    """The COCO results that a run has written."""
    return json.loads(Path(folder, "inference", "coco_instances_results.json").read_text())


class ActingMapper(DatasetMapper):
    """Calls `action` when the `at`-th image is asked for (from 0); it may change the sample."""

    def __init__(self, action: Callable[[dict], None], at: int, **options) -> None:
        super().__init__(**options)
        self.action, self.at, self.calls = action, at, 0

    def __call__(self, dataset_dict: dict) -> dict | None:
        sample = super().__call__(dataset_dict)
        if self.calls == self.at:
            self.action(sample)
        self.calls += 1
        return sample


def act(cfg: DictConfig, action: Callable[[dict], None], at: int) -> None:
    """Makes the training mapper of `cfg` act; one image per iteration."""
    cfg.dataloader.train.total_batch_size = 1
    mapper = cfg.dataloader.train.mapper
    mapper._target_ = ActingMapper
    mapper.action, mapper.at = action, at


def spoil_image(sample: dict) -> None:
    """Makes every loss NaN."""
    sample["image"] = torch.full(sample["image"].shape, float("nan"))


def raise_error(sample: dict) -> None:
    """A fault in the middle of an iteration."""
    raise RuntimeError("out of memory")


class Program:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)
