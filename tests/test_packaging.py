"""An sdist that builds, a wheel from it that is complete, and that wheel installed elsewhere."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command, return its output, fail with it."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | str]:
    """The sdist, the wheel built from that sdist, and what the build said."""
    folder = tmp_path_factory.mktemp("dist")
    log = run(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, repository, cwd=folder
    )
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel, "log": log}


def python_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}


def test_sdist_contains_what_the_build_needs(
    repository: Path, built: dict[str, Path | str]
) -> None:
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kernels = {
        path.relative_to(repository).as_posix()
        for path in (repository / "kernels").rglob("*")
        if path.is_file()
    }
    configs = {f"configs/{name}" for name in python_files(repository / "configs")}
    assert kernels | configs | {"LICENSE", "setup.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_wheel_is_complete(repository: Path, built: dict[str, Path | str]) -> None:
    with zipfile.ZipFile(built["wheel"]) as archive:
        names = set(archive.namelist())
    package = {f"vitadapter/{name}" for name in python_files(repository / "vitadapter")}
    configs = {f"vitadapter/configs/{name}" for name in python_files(repository / "configs")}
    assert package | configs <= names
    assert "vitadapter-0.1.0.dist-info/licenses/LICENSE" in names
    (extension,) = (name for name in names if name.startswith("vitadapter/_C"))
    assert ".cpython-" not in extension, "bound to one Python version"
    assert "-cp310-abi3-" in built["wheel"].name
    top_level = {name.partition("/")[0] for name in names}
    assert top_level == {"vitadapter", "vitadapter-0.1.0.dist-info"}


def test_build_says_what_it_builds(built: dict[str, Path | str]) -> None:
    lines = [line for line in built["log"].splitlines() if line.startswith("vitadapter: building")]
    assert len(lines) == 1
    assert "CPU" in lines[0]


def test_installed_wheel_works(tmp_path: Path, built: dict[str, Path | str]) -> None:
    target = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet")
    run(*pip, "--target", target, built["wheel"], cwd=tmp_path)
    program = """
import torch
import vitadapter
import vitadapter.configs
import vitadapter._C
from vitadapter.ops import ms_deform_attn

output = ms_deform_attn(
    torch.ones(1, 6, 1, 2), [(2, 3)], torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1)
)
assert output.tolist() == [[[1.0, 1.0]]], output
for module in (vitadapter, vitadapter.configs, vitadapter._C):
    print(module.__file__)
"""
    # Without what PyTorch and Detectron2 say of their own old functions.
    python = (sys.executable, "-W", "ignore::FutureWarning")
    files = run(*python, "-c", program, cwd=tmp_path, PYTHONPATH=str(target))
    assert len(files.splitlines()) == 3
    assert all(Path(line).is_relative_to(target) for line in files.splitlines())


def test_build_without_torch_says_what_to_do(repository: Path) -> None:
    program = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['setup.py', '--version']; "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "pip install --no-build-isolation" in done.stderr
    assert "Traceback" not in done.stderr
