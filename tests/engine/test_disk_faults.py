"""Runs that meet a full disk, a vanished folder or a damaged image, and what they leave."""

import json
import logging
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from training_samples import ActingMapper, last, load, metrics_of

from vitadapter.engine.scalars import MetricsWriter
from vitadapter.engine.trainer import do_train

pytestmark = pytest.mark.usefixtures("restored_logging")

# Below the size of a checkpoint, above that of all other files.
_LIMIT = 100_000


class TimedMapper(ActingMapper):
    """Calls the action for each image, with the number of those before."""

    def __call__(self, dataset_dict: dict) -> dict | None:
        self.action(self.calls)
        self.at = -1
        return super().__call__(dataset_dict)


def limit_files(size: int) -> None:
    """Makes the system refuse to write more to a file, as a full disk does."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


@pytest.fixture(autouse=True)
def unlimited_files() -> Iterator[None]:
    """Whatever happens, later tests can write."""
    yield
    limit_files(resource.RLIM_INFINITY)


def at_each_image(cfg: DictConfig, action: Callable[[int], None]) -> None:
    """Eight iterations of one image, with a checkpoint after each second one."""
    cfg.dataloader.train.total_batch_size = 1
    cfg.dataloader.train.mapper.update(_target_=TimedMapper, action=action, at=-1)
    cfg.train.update(max_iter=8)
    cfg.train.checkpointer.period = 2


def test_training_goes_on_while_the_disk_is_full(cfg: DictConfig, caplog) -> None:
    folder = Path(cfg.train.output_dir)
    seen = []

    def act(image: int) -> None:
        if image == 3:
            limit_files(_LIMIT)
        if image == 5:  # iteration 3 could not be saved
            seen.extend(path.name for path in folder.iterdir())
            limit_files(resource.RLIM_INFINITY)

    at_each_image(cfg, act)
    do_train(cfg)
    assert "model_0000001.pth" in seen
    assert not {"model_0000003.pth", "checkpoint.partial"} & set(seen)
    message = next(r.getMessage() for r in caplog.records if r.levelno == logging.ERROR)
    assert "iteration 3 cannot be written" in message
    assert "File too large" in message
    assert f"{folder}/model_0000003.pth" in message
    assert "due after iteration 5" in message
    assert last(cfg) == "model_final.pth"
    assert [row["iteration"] for row in metrics_of(cfg) if "total_loss" in row] == list(range(8))


def test_a_disk_that_stays_full_leaves_the_last_checkpoint(cfg: DictConfig, caplog) -> None:
    def act(image: int) -> None:
        if image == 3:
            limit_files(_LIMIT)

    at_each_image(cfg, act)
    with pytest.raises(OSError, match=r"File too large: .*model_0000007\.pth"):
        do_train(cfg)
    limit_files(resource.RLIM_INFINITY)
    assert "whose state cannot be written" in caplog.text
    assert last(cfg) == "model_0000001.pth"
    at_each_image(cfg, lambda image: None)
    do_train(cfg, resume=True)
    assert load(cfg, "model_final.pth")["iteration"] == 7


def test_a_vanished_folder_is_made_again(cfg: DictConfig, caplog) -> None:
    folder = Path(cfg.train.output_dir)
    # Moved at once: a writer may put a file into a folder that is being emptied.
    gone = folder.with_name("gone")
    at_each_image(cfg, lambda image: folder.rename(gone) if image == 3 else None)
    do_train(cfg)
    assert f"{folder} has vanished" in caplog.text
    assert last(cfg) == "model_final.pth"
    names = {path.name for path in folder.glob("*.pth")}
    assert names == {"model_0000003.pth", "model_0000005.pth", "model_0000007.pth"} | {last(cfg)}


def test_writers_survive_a_full_disk(cfg: DictConfig, caplog) -> None:
    at_each_image(cfg, lambda image: limit_files(_LIMIT // 100) if image == 3 else None)
    cfg.train.checkpointer.period = 100
    with pytest.raises(OSError, match=r"File too large: .*model_final\.pth"):
        do_train(cfg)
    assert "Writer cannot write: [Errno 27] File too large" in caplog.text


def test_rows_that_a_full_disk_refused_are_written_later(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    writer = MetricsWriter(file)
    with EventStorage() as storage:
        for iteration in range(3):
            storage.iter = iteration
            storage.put_scalar("total_loss", float(iteration), smoothing_hint=False)
            storage.put_scalar(f"bbox/AP{iteration}", 1.0, smoothing_hint=False)
            if iteration == 1:
                limit_files(file.stat().st_size + 9)
                with pytest.raises(OSError, match="File too large"):
                    writer.write()
                limit_files(resource.RLIM_INFINITY)
            else:
                writer.write()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert "bbox/AP1" in rows[1]


def test_a_damaged_image_is_left_out(cfg: DictConfig, caplog) -> None:
    damaged = Path(cfg.dataset.train.image_root, "001.png")
    at_each_image(cfg, lambda image: damaged.write_bytes(b"no image") if image == 3 else None)
    do_train(cfg)
    assert f"skipped image {damaged}" in caplog.text
    weights = load(cfg, "model_final.pth")["model"]
    assert all(torch.isfinite(value).all() for value in weights.values())
