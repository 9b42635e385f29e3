"""Fixtures for tests in headless Chromium, driven by playwright-core (CONTRIBUTING.md)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["browser", "node_path"]


@pytest.fixture
def browser() -> str:
    """The program."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"no browser: {', '.join(names)}")
    return found


@pytest.fixture
def node_path() -> str:
    """Where node finds playwright-core: `NODE_PATH`, or what is installed globally."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node, or no npm")
    path = os.environ.get("NODE_PATH") or subprocess.check_output(["npm", "root", "-g"], text=True)
    if not any(Path(each, "playwright-core").is_dir() for each in path.strip().split(os.pathsep)):
        pytest.skip(f"no playwright-core in NODE_PATH, {path.strip()}")
    return path.strip()
