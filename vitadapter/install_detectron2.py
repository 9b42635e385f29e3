"""Installs Detectron2 from PyPI: ``python -m vitadapter.install_detectron2``.

Detectron2's own project publishes no packages there. ``sal-detectron2`` is its code as an
unofficial wheel, which is tagged for one version of Python and asks for NumPy 1. Only its Python
code is used here, which runs with later versions of both, so the wheel is installed regardless of
its tag, and its requirements are installed from the list below.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "COMMAND",
    "REQUIREMENTS",
    "MissingDetectron2Error",
    "find_detectron2",
    "import_error",
    "main",
]

COMMAND = "python -m vitadapter.install_detectron2"
PACKAGE = "sal-detectron2==0.7.2"
WHEEL_TAG = ("--only-binary=:all:", "--python-version", "3.10")
# Those of the wheel, without its limit on NumPy.
REQUIREMENTS = (
    "Pillow>=7.1",
    "black",
    "cloudpickle",
    "fvcore>=0.1.5",
    "hydra-core>=1.1",
    "iopath>=0.1.7",
    "matplotlib",
    "omegaconf>=2.1,<2.4",
    "packaging",
    "pycocotools>=2.0.2",
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "tqdm>4.29.0",
    "yacs>=0.1.8",
)


class MissingDetectron2Error(ImportError):
    """Detectron2 is needed, but is not installed."""


class InstallError(Exception):
    """Why Detectron2 was not installed."""


def find_detectron2() -> Path | None:
    """The folder of the Detectron2 that Python would import, without importing it.

    A folder named detectron2 that holds no package, such as a clone seen from beside it, is none.
    """
    spec = importlib.util.find_spec("detectron2")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def import_error() -> str | None:
    """The error that Detectron2's training code raises when it is imported; None if it works.

    It is asked in another process, because an extension that fits another PyTorch may crash it.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import detectron2.engine, detectron2.evaluation"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        raise InstallError(
            f"pip ended with status {status} (see above). The command was: {' '.join(command)}. "
            "Without a network, PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER takes the wheels from a folder"
        )


def _packages_to_remove(folder: Path, site: Path) -> list[str]:
    """The installed packages that a Detectron2 in ``folder`` belongs to."""
    packages = importlib.metadata.packages_distributions().get("detectron2", [])
    if not packages and not folder.is_relative_to(site):
        raise InstallError(
            f"pip did not install the Detectron2 in {folder}, so it cannot be replaced: take its "
            "folder off PYTHONPATH, or run this in another folder"
        )
    return sorted(set(packages))


def _check_environment(site: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise InstallError(
            f"{sys.executable} has no pip ({sys.executable} -m ensurepip installs it)"
        )
    if not os.access(site, os.W_OK):
        raise InstallError(
            f"you may not write to {site}; use a virtual environment (python -m venv)"
        )


def install(force: bool = False) -> str:
    """Installs Detectron2 and its requirements into this environment, unless it is there.

    Args:
        force: replace a Detectron2 that is there.

    Returns:
        What was done, in a sentence.

    Raises:
        InstallError: there is one that cannot be imported and ``force`` is not set, pip fails, or
            Detectron2 cannot be imported afterwards.
    """
    site = Path(sysconfig.get_path("purelib"))
    there = find_detectron2()
    if there is not None and not force:
        error = import_error()
        if error is None:
            return f"Detectron2 is already in {there}; --force replaces it by {PACKAGE}"
        raise InstallError(
            f"the Detectron2 in {there} cannot be imported ({error}); --force replaces it by "
            f"{PACKAGE} and installs what it requires"
        )
    _check_environment(site)
    replaced = [] if there is None else _packages_to_remove(there, site)
    with tempfile.TemporaryDirectory() as folder:
        # What may fail comes first, so that the old one is not removed for nothing.
        _pip("download", "--no-deps", *WHEEL_TAG, "--dest", folder, PACKAGE)
        _pip("install", *REQUIREMENTS)
        if replaced:
            _pip("uninstall", "--yes", *replaced)
        wheels = Path(folder).glob("*.whl")
        _pip("install", "--upgrade", "--no-deps", *WHEEL_TAG, "--target", site, *wheels)
    error = import_error()
    if error is not None:
        raise InstallError(f"Detectron2 is installed in {site} but cannot be imported: {error}")
    return f"{PACKAGE} is installed in {site}"


def main(arguments: Sequence[str] | None = None, prog: str = COMMAND) -> int:
    """Parses the command line and installs.

    Returns:
        The exit status: 0 if Detectron2 is there and can be imported.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=f"Installs Detectron2 ({PACKAGE}) and what it requires."
    )
    parser.add_argument("--force", action="store_true", help="replace a Detectron2 that is there")
    args = parser.parse_args(arguments)
    try:
        print(install(args.force))
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
