"""Saving in the background, with one process; `test_parallel.py` has two."""

import errno
import logging
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter

from vitadapter.checkpoint.reading import read_state_dict
from vitadapter.engine.checkpoint import AtomicCheckpointer
from vitadapter.engine.resume import find_checkpoint
from vitadapter.engine.sharded_checkpoint import ShardedCheckpointer, recover


def make(folder: Path, value: float = 1.0) -> ShardedCheckpointer:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, value)
    return ShardedCheckpointer(model, str(folder))


def set_weight(checkpointer: AtomicCheckpointer, value: float) -> None:
    with torch.no_grad():
        checkpointer.model.weight.fill_(value)


def last_weight(folder: Path) -> float:
    """Of the checkpoint that a resumed run would load."""
    return read_state_dict(folder / (folder / "last_checkpoint").read_text())["weight"].item()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_training_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch) -> None:
    saver, may_write = make(tmp_path), threading.Event()
    saver.save("model_0000000", iteration=0)
    saver.wait()
    write = FileSystemWriter.write_data

    def wait_and_write(self, *arguments):
        may_write.wait(60)
        return write(self, *arguments)

    monkeypatch.setattr(FileSystemWriter, "write_data", wait_and_write)
    set_weight(saver, 2.0)
    saver.save("model_0000001", iteration=1)
    set_weight(saver, 3.0)
    assert names(tmp_path) == [
        *("last_checkpoint", "model_0000000.dcp", "sharded_checkpoint.partial")
    ]
    assert last_weight(tmp_path) == 1.0
    may_write.set()
    saver.wait()
    assert names(tmp_path) == ["last_checkpoint", "model_0000000.dcp", "model_0000001.dcp"]
    assert last_weight(tmp_path) == 2.0
    assert saver.saved_iteration == 1


def test_a_failed_save_leaves_the_one_before(tmp_path: Path, monkeypatch, caplog) -> None:
    saver = make(tmp_path)
    saver.save("model_0000000", iteration=0)
    saver.wait()

    def fail(self, *arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr(FileSystemWriter, "write_data", fail)
        set_weight(saver, 2.0)
        saver.save("model_0000001", iteration=1)
        with pytest.raises(OSError, match=r"could not be written: .*No space left on device"):
            saver.wait()
        saver.save("model_0000001", iteration=1)
        saver.save("model_0000001", iteration=1)
        with pytest.raises(OSError, match="No space left"):
            saver.wait()
    assert "could not be written: [Errno 28] No space left on device" in caplog.text
    assert saver.saved_iteration is None
    assert last_weight(tmp_path) == 1.0
    saver.save("model_0000001", iteration=1)
    saver.wait()
    assert names(tmp_path) == ["last_checkpoint", "model_0000000.dcp", "model_0000001.dcp"]
    assert last_weight(tmp_path) == 2.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_infinite_or_nan_is_written(tmp_path: Path, value: float) -> None:
    saver = make(tmp_path, value)
    with pytest.raises(FloatingPointError, match=r"model\.weight is infinite or NaN: .*m\.dcp"):
        saver.save("m")
    assert names(tmp_path) == []


def test_old_checkpoints_are_removed(tmp_path: Path) -> None:
    single = AtomicCheckpointer(nn.Linear(1, 1), str(tmp_path))
    single.save("model_0000000", iteration=0)
    single.save("model_final", iteration=0)
    saver = make(tmp_path)
    saver.max_to_keep = 2
    for iteration in range(1, 4):
        saver.save(f"model_{iteration:07d}", iteration=iteration)
    saver.save("model_final", iteration=3)
    saver.save_weights("model_best", saver.model)
    saver.wait()
    assert names(tmp_path) == [
        "last_checkpoint",
        *("model_0000002.dcp", "model_0000003.dcp", "model_best.dcp", "model_final.dcp"),
    ]


def test_what_a_kill_leaves_is_put_right(tmp_path: Path) -> None:
    saver = make(tmp_path)
    saver.save("model_final", iteration=0)
    saver.wait()
    saver.save_weights("model_best", saver.model)
    saver.wait()
    # Killed while a folder was replaced, and while the next one was written.
    for name in ("model_final.dcp", "model_best.dcp"):
        (tmp_path / name).rename(tmp_path / f"{name}.old")
    (tmp_path / "sharded_checkpoint.partial").mkdir()
    (tmp_path / "sharded_checkpoint.partial/__0_0.distcp").write_bytes(b"half")
    recover(tmp_path)
    assert names(tmp_path) == ["last_checkpoint", "model_best.dcp", "model_final.dcp"]
    assert last_weight(tmp_path) == 1.0
    # Killed after it was replaced.
    (tmp_path / "model_final.dcp.old").mkdir()
    recover(tmp_path)
    assert names(tmp_path) == ["last_checkpoint", "model_best.dcp", "model_final.dcp"]


def test_a_damaged_one_gives_way_to_the_one_before(tmp_path: Path, caplog) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    state = {"iteration": 0, "optimizer": optimizer.state_dict(), "hooks": {}}

    class Trainer:
        def state_dict(self):
            return state

        def load_state_dict(self, state):
            raise AssertionError

    saver = ShardedCheckpointer(model, str(tmp_path), trainer=Trainer())
    for iteration in range(2):
        saver.save(f"model_{iteration:07d}", iteration=iteration)
        saver.wait()
    next((tmp_path / "model_0000001.dcp").glob("*.distcp")).unlink()
    with caplog.at_level(logging.WARNING):
        path, content = find_checkpoint(str(tmp_path))
    assert path.name == "model_0000000.dcp"
    assert content["iteration"] == 0
    assert "files are missing" in caplog.text
    assert "training continues from" in caplog.text
