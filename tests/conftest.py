"""Fixtures of the whole suite: devices, and the data that lies beside the repository."""

# First, because it refuses to be imported after Python's own distutils, which some package may use.
import setuptools  # noqa: F401

# isort: split
import gc
import importlib.util
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from file_server import FileServer, serving
from project_configs import SHARED_CONFIGS

from vitadapter.checkpoint import download

REPOSITORY = Path(__file__).resolve().parents[1]

torch.set_num_threads(min(2, torch.get_num_threads()))

# PyTorch describes every step of a trace as soon as this logger has a handler, and pytest gives one
# to each logger that does not propagate. It would make half of the time of an export.
logging.getLogger("torch.__trace").propagate = True


def pytest_configure(config: pytest.Config) -> None:
    """Gives the processes of pytest-xdist a folder beside their own temporary ones."""
    if hasattr(config, "workerinput"):
        os.environ[SHARED_CONFIGS] = str(Path(config.option.basetemp).parent / "configs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="gpu: CUDA is not available"))


def pytest_collection_finish() -> None:
    """What has been imported stays to the end: the garbage collector need not look at it."""
    gc.freeze()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that tensors can live on here."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ``../shared`` with golden files and real images."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("shared data absent")
    return folder


@pytest.fixture(scope="session")
def recipes(shared: Path) -> dict[str, dict]:
    """The recipes of the official release by their names."""
    listed = json.loads((shared / "reference" / "recipes.json").read_text())["recipes"]
    return {recipe["name"]: recipe for recipe in listed}


@pytest.fixture(scope="session")
def golden() -> ModuleType:
    """``golden_weights.py``, which draws the weights and inputs of the golden files.

    Its ``path(name)`` is a golden file: of ``../shared/golden``, or of the few in ``tests/golden``.
    """
    folders = [REPOSITORY.parent / "shared" / "golden", REPOSITORY / "tests" / "golden"]
    sources = [folder / "golden_weights.py" for folder in folders]
    source = next(path for path in sources if path.is_file())
    spec = importlib.util.spec_from_file_location("golden_weights", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def path(name: str) -> str:
        found = [folder / f"{name}.npz" for folder in folders if (folder / f"{name}.npz").is_file()]
        if not found:
            pytest.skip("shared data absent")
        return str(found[0])

    module.path = path
    return module


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for downloads, which is not there yet."""
    monkeypatch.setenv("VITADAPTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server of files, which is waited for a fraction of a second only."""
    patience = download.Patience(seconds=0.3, pause=0.01)
    monkeypatch.setattr(download, "PATIENCE", patience)
    with serving() as running:
        yield running
