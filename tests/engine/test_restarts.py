"""Whether a run goes on without being asked; `test_train.py` has one that torchrun starts again."""

from pathlib import Path

import pytest
from detectron2.utils import comm

from vitadapter.engine.restarts import is_restart, note_run

FIRST = {"TORCHELASTIC_RUN_ID": "job 7", "TORCHELASTIC_RESTART_COUNT": "0"}


def test_a_run_that_torchrun_starts_again(tmp_path: Path) -> None:
    folder = tmp_path / "output"
    assert not is_restart(folder, {})
    assert not is_restart(folder, FIRST)
    assert is_restart(folder, {**FIRST, "TORCHELASTIC_RESTART_COUNT": "2"})
    folder.mkdir()
    note_run(folder, FIRST)
    # When a machine joins, torchrun starts all again without counting.
    assert is_restart(folder, FIRST)
    assert not is_restart(folder, {**FIRST, "TORCHELASTIC_RUN_ID": "job 8"})
    assert not is_restart(folder, {})


@pytest.mark.parametrize("unnamed", [{}, {"TORCHELASTIC_RUN_ID": "none"}])
def test_runs_without_a_name_are_not_taken_for_each_other(
    tmp_path: Path, unnamed: dict[str, str]
) -> None:
    note_run(tmp_path, unnamed)
    assert not is_restart(tmp_path, unnamed)
    assert not list(tmp_path.iterdir())


def test_all_processes_go_on_if_one_was_started_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(comm, "all_gather", lambda own: [own, True])
    assert is_restart(tmp_path, FIRST)
