"""The gates of the CUDA kernels, for one architecture before 9.0 and one after."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ARCHITECTURES = ("80", "90")


@pytest.fixture(scope="module")
def repository_with_nvcc(repository: Path) -> Path:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc absent")
    return repository


def report(repository: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, repository / "scripts" / "cuda_report.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_gates_hold(repository_with_nvcc: Path) -> None:
    done = report(repository_with_nvcc, "--arch", *ARCHITECTURES, "--only", "fused")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("sm_")]
    for architecture in ARCHITECTURES:
        # forward and backward; 3 head dimensions by 4 numbers of taps in 3 dtypes, 3 in float64,
        # any head dimension and any size at all in 4.
        kernels = 2 * (3 * 4 * 3 + 3 + 4 + 4)
        assert sum(line.startswith(f"sm_{architecture} ") for line in rows) == kernels
    assert "0 gates broken" in done.stdout


def test_broken_gate_is_reported(repository_with_nvcc: Path, tmp_path: Path) -> None:
    kernels = shutil.copytree(
        repository_with_nvcc / "kernels" / "ms_deform_attn", tmp_path / "kernels"
    )
    rows = kernels / "grad_value_rows_cuda.cuh"
    text = rows.read_text()
    right = "const auto scale = tap.share(corner);"
    assert right in text
    rows.write_text(text.replace(right, "const double scale = tap.share(corner) * 0.1;"))
    done = report(
        repository_with_nvcc, "--arch", "80", "--only", "grad_value", "--kernels", kernels
    )
    assert done.returncode == 1
    assert "BROKEN sm_80 grad_value_rows float32" in done.stdout
    assert "float64 arithmetic" in done.stdout
