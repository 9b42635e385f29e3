"""Sweeps over settings and seeds, with runs that are finished already."""

import json
import runpy
import subprocess
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(
    str(Path(__file__).resolve().parents[2] / "scripts" / "compare_settings.py")
)
main, read_settings = SCRIPT["main"], SCRIPT["read_settings"]
SETTINGS = ["--setting", "N = 2: A model.n=2", "--setting", "plain ViT: B"]


def finish(folder: Path, value: float) -> None:
    folder.mkdir(parents=True)
    rows = [{"iteration": 0, "total_loss": 1.0}, {"iteration": 1, "bbox/AP": value}]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    (folder / "done").touch()


def test_mean_and_spread_of_finished_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, value in ((1, 10.0), (2, 12.0)):
        finish(tmp_path / "n_2" / f"seed{seed}", value)
        finish(tmp_path / "plain_vit" / f"seed{seed}", value / 2)
    main([*SETTINGS, "--output", str(tmp_path), "--seeds", "1", "2", "--metrics", "bbox/AP", "x"])
    table = capsys.readouterr().out
    # The standard deviation of 10 and 12 is the square root of 2.
    assert "| N = 2     |    2 | 11.0 ± 1.4 | 10.0 12.0 | - |" in table
    assert "| plain ViT |    2 |  5.5 ± 0.7 |   5.0 6.0 | - |" in table
    assert (tmp_path / "table.md").read_text() == table


def test_a_run_is_trained_with_its_overrides_and_a_failed_one_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def run(command: list[str], **_: object) -> None:
        commands.append(command)
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match=r"error: .*lazyconfig_train_net\.py"):
        main([*SETTINGS, "--output", str(tmp_path), "--seeds", "3", "--all", "train.max_iter=5"])
    folder = tmp_path / "n_2" / "seed3"
    assert commands[0][2:] == [
        *("--resume", "--config-file", "A", "model.n=2", "train.max_iter=5"),
        *("train.seed=3", f"train.output_dir={folder}"),
    ]
    assert not (folder / "done").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["no config"], "'NAME: CONFIG"),
        (["name:  "], "'NAME: CONFIG"),
        ([" : config"], "'NAME: CONFIG"),
        (["N = 2: a", "n 2: b"], "must differ, got 'n 2' twice"),
    ],
)
def test_settings_that_are_none(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_settings(settings)
