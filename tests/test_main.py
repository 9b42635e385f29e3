"""The command `vitadapter`: which commands there are, and that each reaches its function."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vitadapter import __version__
from vitadapter.__main__ import COMMANDS, main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments: list[str], capsys) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vitadapter {__version__}\n"


def test_a_misspelt_command_is_refused_with_the_nearest(capsys) -> None:
    assert main(["predcit", "x"]) == 2
    assert "no command 'predcit': did you mean predict?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: vitadapter {name} " in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_an_unknown_option(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--no-such-option"])
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_help_needs_no_torch(repository: Path) -> None:
    """It is printed at once, also where the installation is broken."""
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['detectron2'] = None; "
        "from vitadapter.__main__ import main; sys.exit(main(['--help']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "unbuffered"), [("zoo", ""), ("zoo", "1"), ("zoo --help", ""), ("--help", "1")]
)
def test_a_closed_pipe_ends_a_command_in_silence(
    arguments: str, unbuffered: str, repository: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "vitadapter", *arguments.split()],
        cwd=repository,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE
    assert "error" not in done.stderr.lower()


def test_without_detectron2_a_command_says_so_in_a_line(repository: Path) -> None:
    program = (
        "import importlib.util, sys; find = importlib.util.find_spec; "
        "importlib.util.find_spec = lambda name, *a: None if name == 'detectron2' else find(name); "
        "from vitadapter.__main__ import main; sys.exit(main(['predict', 'x', 'photo.jpg']))"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: vitadapter needs Detectron2")
    assert line.endswith("(or: vitadapter install-detectron2)")


@pytest.mark.parametrize(
    "arguments",
    [
        *([name] for name in COMMANDS),
        *(["data", name] for name in ("check", "convert", "sample", "show")),
    ],
)
def test_help_shows_no_default_where_there_is_none(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: vitadapter {' '.join(arguments)}" in shown
    assert not any(f"(default: {value})" in shown for value in (None, False, []))


@pytest.mark.parametrize(("name", "missing"), [("train", "CONFIG"), ("convert", "input, output")])
def test_overrides_are_not_required(name: str, missing: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main([name])
    assert capsys.readouterr().err.endswith(f"are required: {missing}\n")
