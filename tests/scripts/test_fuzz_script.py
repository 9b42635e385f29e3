import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def path(repository: Path) -> Path:
    return repository / "scripts" / "fuzz_checkpoint_reader.py"


@pytest.fixture
def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("script_fuzz_checkpoint_reader", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_few_hundred_cases(path: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(path), "--cases", "200", "--seed", "70000"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.startswith("200 cases: ")
    assert run.stdout.endswith(" 0 neither\n")


def test_valid_files_load(script: ModuleType, tmp_path: Path) -> None:
    for suffix, content in script.valid_files().items():
        path = tmp_path / f"w{suffix}"
        path.write_bytes(content)
        assert script.read_state_dict(path)


def test_cases_follow_from_their_seeds(script: ModuleType) -> None:
    files = script.valid_files()
    cases = [script.make_case(seed, files) for seed in range(50)]
    assert cases == [script.make_case(seed, files) for seed in range(50)]
    assert {suffix for suffix, _ in cases} == files.keys()


def raise_key_error(path: Path) -> None:
    raise KeyError("a")


@pytest.mark.parametrize(
    ("read", "seconds", "message"),
    [
        (raise_key_error, 600, "seed 5: KeyError: 'a'"),
        (lambda path: os._exit(7), 600, "seed 5: process ended with 7"),
        (lambda path: time.sleep(600), 0.5, "seed 5: more than 0.5 s"),
        (lambda path: bytearray(2**34), 600, "seed 5: MemoryError: "),
    ],
)
def test_what_is_neither_loaded_nor_refused_is_told(
    script: ModuleType,
    monkeypatch,
    capsys,
    read: Callable[[Path], object],
    seconds: float,
    message: str,
) -> None:
    monkeypatch.setattr(script, "read_state_dict", read)
    assert script.main(["--cases", "2", "--seed", "5", "--seconds", str(seconds)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 cases: 0 loaded, 0 refused, 2 neither"
    assert lines[1].startswith(message)
