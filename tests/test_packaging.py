"""An sdist that builds with and without PyTorch, complete wheels, and these installed elsewhere."""

import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from without_editable_installs import WITHOUT_EDITABLE_INSTALLS

from vitadapter import __version__

# Packages of the wheel that lie elsewhere in the repository.
MAPPED = {
    "vitadapter/configs": "configs",
    "vitadapter/experiments": "projects/ViTAdapter/configs",
    "vitadapter/sample_data": "scripts/sample_data",
}


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


@dataclass(frozen=True)
class Built:
    """A wheel, and what its build said."""

    wheel: Path
    log: str

    def names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())


def build(source: Path, folder: Path, *options: str, **environment: str) -> Built:
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, *options)
    log = run(*command, source, cwd=folder, **environment)
    (wheel,) = folder.glob("*.whl")
    return Built(wheel, log)


@pytest.fixture(scope="module")
def compiled(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel with compiled operators, built from the sdist that lies beside it."""
    return build(repository, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def sdist(compiled: Built) -> Path:
    (path,) = compiled.wheel.parent.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def pure(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel that is built from the sdist where there is no PyTorch, as in pip's isolation."""
    folder = tmp_path_factory.mktemp("pure")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    (folder / "without").mkdir()
    (folder / "without" / "torch.py").write_text("raise ImportError('hidden')")
    return build(source, folder, "--wheel", PYTHONPATH=str(folder / "without"))


@pytest.fixture(params=["compiled", "pure"])
def built(request: pytest.FixtureRequest) -> Built:
    return request.getfixturevalue(request.param)


def _is_source(path: Path) -> bool:
    return "__pycache__" not in path.parts and path.suffix != ".so"


def files(folder: Path, package: str) -> set[str]:
    """All files of a folder, such as the page of the report, as names in the wheel."""
    found = (path for path in folder.rglob("*") if path.is_file() and _is_source(path))
    return {f"{package}/{path.relative_to(folder).as_posix()}" for path in found}


def test_release_is_of_one_version(repository: Path) -> None:
    citation = (repository / "CITATION.cff").read_text().splitlines()
    assert f"version: {__version__}" in citation
    releases = (repository / "CHANGELOG.md").read_text().split("\n## ")[1:]
    named = [release.split()[0] for release in releases]
    assert __version__ in named[:2], "the last release, below what is not released yet if any is"


def test_sdist_contains_what_the_build_needs(repository: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kernels = {
        path.relative_to(repository).as_posix()
        for path in (repository / "kernels").rglob("*")
        if path.is_file()
    }
    mapped = set().union(*(files(repository / folder, folder) for folder in MAPPED.values()))
    assert kernels | mapped | {"LICENSE", "setup.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_wheel_is_complete(repository: Path, built: Built) -> None:
    names = built.names()
    assert files(repository / "vitadapter", "vitadapter") <= names
    for package, folder in MAPPED.items():
        expected = files(repository / folder, package)
        assert expected
        assert expected <= names
    assert f"vitadapter-{__version__}.dist-info/licenses/LICENSE" in names
    top_level = {name.partition("/")[0] for name in names}
    assert top_level == {"vitadapter", f"vitadapter-{__version__}.dist-info"}


def test_compiled_wheel_serves_all_versions_of_python(compiled: Built) -> None:
    (extension,) = (name for name in compiled.names() if name.startswith("vitadapter/_C"))
    assert ".cpython-" not in extension, "bound to one Python version"
    assert "-cp310-abi3-" in compiled.wheel.name


def test_pure_wheel_serves_all_machines(pure: Built) -> None:
    assert pure.wheel.name == f"vitadapter-{__version__}-py3-none-any.whl"
    assert not [name for name in pure.names() if name.startswith("vitadapter/_C")]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("compiled", "vitadapter: building the C++ operators for CPU"),
        ("pure", "not building the C++ operators: there is no PyTorch to compile them against"),
    ],
)
def test_build_says_what_it_builds(
    kind: str, expected: str, request: pytest.FixtureRequest
) -> None:
    log = request.getfixturevalue(kind).log
    (line,) = (line for line in log.splitlines() if line.startswith("vitadapter: "))
    assert expected in line
    if kind == "pure":
        assert "pip install --no-build-isolation ." in line


def test_installed_wheel_works(tmp_path: Path, built: Built) -> None:
    target = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet")
    run(*pip, "--target", target, built.wheel, cwd=tmp_path)
    program = """
import torch
import vitadapter
import vitadapter.configs
import vitadapter.experiments
import vitadapter.sample_data.dataset
from vitadapter.model_zoo import load_experiment
from vitadapter.ops import ms_deform_attn
from vitadapter.ops.library import describe_build

output = ms_deform_attn(
    torch.ones(1, 6, 1, 2), [(2, 3)], torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1)
)
assert output.tolist() == [[[1.0, 1.0]]], output
cfg = load_experiment(f"{vitadapter.experiments.__path__[0]}/Digits/upernet_vit_t.py")
packages = vitadapter, vitadapter.configs, vitadapter.experiments, vitadapter.sample_data
print(*(package.__file__ for package in packages), cfg.dataset.class_names, describe_build())
"""
    # Without what PyTorch and Detectron2 say of their own old functions.
    python = (sys.executable, "-W", "ignore")
    program = WITHOUT_EDITABLE_INSTALLS + program
    said = run(*python, "-c", program, cwd=tmp_path, PYTHONPATH=str(target))
    *places, build = said.rstrip().split(" ", 5)
    assert all(Path(place).is_relative_to(target) for place in places)
    assert Path(places[-1]).read_text().split() == ["photograph", "digit"]
    assert build.startswith("not compiled" if "none-any" in built.wheel.name else "compiled with")
