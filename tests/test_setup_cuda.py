"""How the build decides about compiling, and about the CUDA kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def ask_setup(repository: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    hidden = {"CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"}
    hidden |= {"VITADAPTER_COMPILE", "VITADAPTER_CUDA"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=repository,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def fake_toolkit(folder: Path, version: str) -> Path:
    """A toolkit that says of itself to have that version, and does nothing else."""
    for name in ("bin", "include", "lib64"):
        (folder / name).mkdir(parents=True)
    (folder / "include" / "cuda_runtime.h").touch()
    (folder / "lib64" / "libcudart.so").touch()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\n")
    nvcc.chmod(0o755)
    return folder


def test_toolkit_that_lacks_a_part(repository: Path, tmp_path: Path) -> None:
    """As pip's packages do where only some are installed."""
    if torch.version.cuda is None:
        pytest.skip("gpu: this torch is built without CUDA")
    toolkit = fake_toolkit(tmp_path / "cuda", torch.version.cuda)
    nvcc = toolkit / "bin" / "nvcc"
    failing = (
        "case $* in *kernel.cu*) echo 'fatal error: nv/target: no such file' >&2; exit 1;; esac"
    )
    nvcc.write_text(nvcc.read_text() + f"{failing}\n")
    environment = dict(CUDA_HOME=str(toolkit), PATH=path_without_nvcc())
    done = ask_setup(repository, VITADAPTER_CUDA="1", **environment)
    assert done.returncode != 0
    assert "compiles nothing (fatal error: nv/target: no such file)" in done.stderr
    assert ask_setup(repository, TORCH_CUDA_ARCH_LIST="8.0", **environment).returncode == 0


def path_without_nvcc() -> str:
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if not Path(folder, "nvcc").exists())


@pytest.mark.parametrize("name", ["VITADAPTER_CUDA", "VITADAPTER_COMPILE"])
def test_unknown_wish_is_refused(repository: Path, name: str) -> None:
    done = ask_setup(repository, **{name: "yes"})
    assert done.returncode != 0
    assert f"{name} must be 0 or 1, got 'yes'" in done.stderr


def refuses(repository: Path, message: str, **environment: str) -> None:
    done = ask_setup(repository, **environment)
    assert done.returncode != 0
    assert f"vitadapter: {message}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("demand", "reason", "environment"),
    [
        ("VITADAPTER_COMPILE", "no C++ compiler (no-such-compiler;", {"CXX": "no-such-compiler"}),
        ("VITADAPTER_CUDA", "VITADAPTER_COMPILE=0", {"VITADAPTER_COMPILE": "0"}),
    ],
)
def test_demand_without_compiling(
    repository: Path, demand: str, reason: str, environment: dict[str, str]
) -> None:
    assert ask_setup(repository, **environment).returncode == 0
    refuses(repository, f"{demand}=1, but {reason}", **{demand: "1"}, **environment)


def test_demand_without_torch(repository: Path, tmp_path: Path) -> None:
    """As in pip's isolated build."""
    (tmp_path / "torch.py").write_text("raise ImportError('hidden')")
    environment = dict(VITADAPTER_COMPILE="1", PYTHONPATH=str(tmp_path))
    reason = "there is no PyTorch to compile them against (hidden). Install torch>=2.6 and build"
    refuses(repository, f"VITADAPTER_COMPILE=1, but {reason}", **environment)


def test_demand_that_cannot_be_met(repository: Path, tmp_path: Path) -> None:
    toolkit = fake_toolkit(tmp_path / "cuda", "9.2")
    environment = dict(CUDA_HOME=str(toolkit), PATH=path_without_nvcc())
    done = ask_setup(repository, VITADAPTER_CUDA="1", **environment)
    assert done.returncode != 0
    assert "vitadapter: VITADAPTER_CUDA=1, but " in done.stderr
    assert "Traceback" not in done.stderr
    if torch.version.cuda is not None:
        assert f"nvcc 9.2 in {toolkit} does not fit" in done.stderr
    # A wish is no demand: the same toolkit is then left alone.
    assert ask_setup(repository, TORCH_CUDA_ARCH_LIST="8.0", **environment).returncode == 0


def test_without_wish_nothing_is_demanded(repository: Path) -> None:
    assert ask_setup(repository, PATH=path_without_nvcc()).returncode == 0
    assert ask_setup(repository, VITADAPTER_CUDA="0").returncode == 0
