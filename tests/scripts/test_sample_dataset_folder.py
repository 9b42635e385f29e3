"""Where the sample data set is written: what is kept, completed or refused; and its script."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from file_digests import digest

from vitadapter.commands.data import sample
from vitadapter.sample_data.dataset import MAX_SIZE, MIN_SIZE, make_sample_dataset

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_sample_dataset.py"


def test_an_interrupted_set_is_completed(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_sample_dataset(tmp_path / "a", 3, 2, MIN_SIZE, 0, on_image=interrupt)
    assert make_sample_dataset(tmp_path / "a", 3, 2, MIN_SIZE, 0)
    make_sample_dataset(tmp_path / "b", 3, 2, MIN_SIZE, 0)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    (tmp_path / "a" / "val" / "000002.jpg").unlink()
    assert make_sample_dataset(tmp_path / "a", 3, 2, MIN_SIZE, 0)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_a_different_set_is_refused_then_overwritten(tmp_path: Path) -> None:
    make_sample_dataset(tmp_path, 3, 2, MIN_SIZE, 0)
    notes = tmp_path / "train" / "notes.txt"
    notes.write_text("mine")
    before = digest(tmp_path)
    with pytest.raises(ValueError, match=r"'num_train': 3.*'num_train': 2.*--overwrite"):
        make_sample_dataset(tmp_path, 2, 2, MIN_SIZE, 0)
    assert digest(tmp_path) == before
    assert make_sample_dataset(tmp_path, 2, 2, MIN_SIZE, 0, overwrite=True)
    assert notes.read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "train").glob("*.jpg")) == [
        "000001.jpg",
        "000002.jpg",
    ]


def test_the_same_set_in_an_older_format_is_renewed(tmp_path: Path) -> None:
    make_sample_dataset(tmp_path, 2, 1, MIN_SIZE, 0)
    renewed = digest(tmp_path)
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    manifest["arguments"]["format_version"] = 1
    (tmp_path / "dataset.json").write_text(json.dumps(manifest))
    (tmp_path / "foreground" / "val" / "000001.png").unlink()
    assert make_sample_dataset(tmp_path, 2, 1, MIN_SIZE, 0)
    assert digest(tmp_path) == renewed


@pytest.mark.parametrize(
    "manifest", [None, "{", "\udcff", '{"arguments": {"num_train": "3"}}', "[]"]
)
def test_files_of_unknown_origin_are_refused(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "000009.jpg").write_bytes(b"mine")
    if manifest is not None:
        (tmp_path / "dataset.json").write_text(manifest, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"already holds train.*--overwrite"):
        make_sample_dataset(tmp_path, 1, 1, MIN_SIZE, 0)
    assert make_sample_dataset(tmp_path, 1, 1, MIN_SIZE, 0, overwrite=True)
    assert (tmp_path / "train" / "000009.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_train": 0}, ValueError, "num_train must be at least 1, got 0"),
        ({"num_val": -3}, ValueError, "num_val must be at least 1, got -3"),
        ({"size": MIN_SIZE - 1}, ValueError, "size must be between 64 and 256.*got 63"),
        ({"size": MAX_SIZE + 1}, ValueError, "size must be between 64 and 256.*got 257"),
        ({"seed": -1}, ValueError, "seed must not be negative, got -1"),
        ({"size": 128.0}, TypeError, "size must be an int, got 128.0"),
        ({"num_train": True}, TypeError, "num_train must be an int, got True"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, change: dict[str, int], error: type[Exception], message: str
) -> None:
    arguments = {"num_train": 1, "num_val": 1, "size": MIN_SIZE, "seed": 0} | change
    with pytest.raises(error, match=message):
        make_sample_dataset(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["", "deep/er"])
def test_out_must_not_be_a_file(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match=r"out must be a folder, but .*file is a file"):
        make_sample_dataset(file / below, 1, 1, MIN_SIZE, 0)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("package", ["skimage", "sklearn.datasets"])
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install vitadapter\[sample\]"):
        make_sample_dataset(tmp_path / "out", 1, 1, MIN_SIZE, 0)
    assert not (tmp_path / "out").exists()


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    search_path = [str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search_path))},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path / "set"), "--train", "2", "--val", "1", "--size", "64"]
    first = run_script(*arguments)
    assert first.returncode == 0, first.stderr
    assert "written to" in first.stdout
    sample(arguments)
    assert "already in" in capsys.readouterr().out
    refused = run_script(*arguments, "--seed", "5")
    assert refused.returncode == 1, refused.stderr
    assert "--overwrite" in refused.stderr
    assert "Traceback" not in refused.stderr, refused.stderr


def test_a_folder_that_cannot_be_written_is_an_error_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"^error: .*file"):
        sample(["--output", str(tmp_path / "file" / "set"), "--train", "1", "--val", "1"])


def test_defaults_are_those_of_the_script() -> None:
    defaults = inspect.signature(make_sample_dataset).parameters
    assert {name: defaults[name].default for name in ("num_train", "num_val", "size", "seed")} == {
        "num_train": 800,
        "num_val": 160,
        "size": 128,
        "seed": 0,
    }
