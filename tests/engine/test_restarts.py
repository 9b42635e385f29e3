"""Whether a run goes on without being asked; `test_train.py` has one that torchrun starts again."""

import os
from pathlib import Path

from detectron2.utils import comm

from vitadapter.engine.restarts import is_restart, note_run

FIRST = {"TORCHELASTIC_RUN_ID": "job 7", "TORCHELASTIC_RESTART_COUNT": "0"}


def test_a_run_that_torchrun_starts_again(tmp_path: Path) -> None:
    folder = tmp_path / "output"
    assert not is_restart(folder, {})
    assert not is_restart(folder, FIRST)
    folder.mkdir()
    # What was refused, since it would continue an older run, is refused when it is started again.
    assert not is_restart(folder, {**FIRST, "TORCHELASTIC_RESTART_COUNT": "2"})
    note_run(folder, FIRST)
    # When a machine joins, torchrun starts all again without counting.
    assert is_restart(folder, FIRST)
    assert not is_restart(folder, {**FIRST, "TORCHELASTIC_RUN_ID": "job 8"})
    assert not is_restart(folder, {})


def test_a_run_without_torchrun_has_no_note(tmp_path: Path) -> None:
    note_run(tmp_path, {})
    assert not is_restart(tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_runs_without_a_name_are_not_taken_for_each_other(tmp_path: Path, monkeypatch) -> None:
    """They are known by the process of torchrun, which is the parent of theirs."""
    unnamed = {"TORCHELASTIC_RUN_ID": "none"}
    note_run(tmp_path, unnamed)
    assert is_restart(tmp_path, unnamed)
    monkeypatch.setattr(os, "getppid", lambda: -1)
    assert not is_restart(tmp_path, unnamed)


def test_all_processes_go_on_if_one_was_started_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(comm, "all_gather", lambda own: [own, True])
    assert is_restart(tmp_path, FIRST)
