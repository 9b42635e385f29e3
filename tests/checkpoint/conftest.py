"""A server of files, a cache of its own, and little patience."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, serving

from vitadapter.checkpoint import download


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for downloads, which is not there yet."""
    monkeypatch.setenv("VITADAPTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Waited for a fraction of a second only."""
    monkeypatch.setattr(download, "PATIENCE", download.Patience(seconds=0.3, pause=0.01))
    with serving() as running:
        yield running
