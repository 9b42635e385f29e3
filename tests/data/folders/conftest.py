"""A cache of its own for each test, and a small data set of two splits."""

from pathlib import Path

import pytest
from folder_formats import Splits
from folder_samples import sample_splits


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where prepared folders go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitadapter" / "data"


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    """As `sample_splits`, with polygons."""
    return sample_splits(tmp_path / "source")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that does not exist yet, with a space and an umlaut in its name."""
    return tmp_path / "my dätä"
