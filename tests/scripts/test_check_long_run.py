"""What a training process holds, seen from outside."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts/check_long_run.py"))
main, watch, growth, Usage = (SCRIPT[name] for name in ("main", "watch", "growth", "Usage"))

# Stands for a training: nine iterations, in each of which something happens.
RUN = """
import json, pathlib, subprocess, sys, time
(output, temporary, shared), kept = map(pathlib.Path, sys.argv[1:]), []
with open(output / "metrics.json", "a", buffering=1) as metrics:
    for iteration in range(1, 10):
        {body}
        metrics.write(json.dumps({{"iteration": iteration, "total_loss": 1.0}}) + "\\n")
        time.sleep(0.25)
"""


def grown(tmp_path: Path, body: str) -> str:
    folders = [tmp_path / name for name in ("output", "temporary", "shared")]
    for folder in folders:
        folder.mkdir()
    output, temporary, shared = folders
    run = [sys.executable, "-S", "-c", RUN.format(body=body), *map(str, folders)]
    process = subprocess.Popen(run)
    # Other tests use the shared memory of this machine meanwhile.
    SCRIPT["watch"].__globals__.update(POLL_SECONDS=0.05, SHARED_MEMORY=shared)
    usages = list(watch(process, output, temporary, 1))
    assert process.wait() == 0
    assert len(usages) >= 3
    return "; ".join(growth(usages))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("pass", ""),
        ("kept.append(open('/dev/null'))", "handles has grown"),
        ("kept.append(bytearray(4 << 20))", "memory_mb has grown"),
        ("(temporary / str(iteration)).touch()", "temporary has grown"),
        ("(shared / str(iteration)).touch()", "shared has grown"),
        ("(output / str(iteration)).touch()", "output has grown"),
        ("kept.append(subprocess.Popen(['sleep', '3']))", "processes has grown"),
    ],
)
def test_what_grows_is_named(tmp_path: Path, body: str, expected: str) -> None:
    found = grown(tmp_path, body)
    assert expected in found
    assert expected or not found


def test_a_single_jump_is_no_growth() -> None:
    steady = Usage(0, 3, 100.0, 20, 2, 0, 5)
    assert (
        growth([steady] * 4 + [steady._replace(handles=90, memory_mb=900.0)] + [steady] * 4) == []
    )
    assert growth([steady]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["no_config.py"], "no_config.py"), (["{tiny}", "--every", "0"], "must be positive, got 0")],
)
def test_mistakes(
    arguments: list[str], message: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = str(repository / "tests/helpers/tiny_mask_rcnn.py")
    with pytest.raises(SystemExit) as stopped:
        main([argument.format(tiny=tiny) for argument in arguments])
    assert message in f"{stopped.value.code} {capsys.readouterr().err}"
