"""The report on an installation that works, and on broken ones."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import vitadapter
from vitadapter import doctor


def report(folder: Path, **files: str) -> tuple[int, str, str]:
    """Exit status, lines and remedies of an installation where ``files`` are found first."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    path = [str(folder), str(Path(vitadapter.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-m", "vitadapter.doctor"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    lines, _, remedies = done.stdout.partition("\n\n")
    return done.returncode, lines, remedies


def test_working_installation(tmp_path: Path) -> None:
    status, lines, remedies = report(tmp_path)
    assert (status, remedies) == (0, "Nothing is missing: training can run here.\n")
    found = dict(line.split(maxsplit=1) for line in lines.splitlines())
    assert found["vitadapter"] == f"0.2.0 in {Path(vitadapter.__file__).parent}"
    assert found["operators"].startswith("compiled with torch")
    assert " in use)" in found["operators"]
    assert set(doctor.PROBES) <= set(found)
    assert {"torch", "timm", "numpy", "omegaconf"} <= set(found)


def test_broken_installation(tmp_path: Path) -> None:
    """An old package, others that cannot be imported, and one that crashes Python."""
    status, lines, remedies = report(
        tmp_path,
        **{
            "timm-0.9.16.dist-info/METADATA": "Name: timm\nVersion: 0.9.16\n",
            "torch/__init__.py": "raise ImportError('libcudart.so.13: cannot open')",
            "cv2/__init__.py": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "pycocotools/__init__.py": "raise ImportError('numpy.core.multiarray failed')",
            "detectron2/__init__.py": "import no_such_module",
        },
    )
    assert status == 1
    expected = [
        "Training cannot run here.",
        "timm: 0.9.16, but timm>=1.0.20 is needed",
        f"{doctor.PIP} --upgrade 'timm>=1.0.20'",
        "PyTorch: ImportError: libcudart.so.13: cannot open",
        f"{doctor.PIP} 'torch>=2.6' torchvision",
        "OpenCV: ends Python with exit status -11",
        f"{doctor.PIP} opencv-python-headless",
        "pycocotools: ImportError: numpy.core.multiarray failed",
        "--force-reinstall --no-deps pycocotools",
        "Detectron2: ModuleNotFoundError: No module named 'no_such_module'",
        "python -m vitadapter.install_detectron2 (with --force",
    ]
    places = [remedies.find(text) for text in expected]
    assert -1 not in places
    assert places == sorted(places)
    assert "SciPy" in lines
    assert "SciPy" not in remedies


@pytest.mark.parametrize(
    ("requirement", "works"),
    [
        ("torch>=2.6", True),
        ("torch>=2.5,<2.6", False),
        ("torch>99", False),
        ("torch<=99.1", True),
        ("no-such-package", False),
    ],
)
def test_limits_of_versions(requirement: str, works: bool) -> None:
    finding = doctor.find_package(requirement)
    assert (finding.remedy is None) is works
    assert works or requirement in finding.remedy


def test_damaged_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timm-1.0.22.dist-info").mkdir()
    (tmp_path / "timm-1.0.22.dist-info" / "METADATA").touch()
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor.find_package("timm>=1.0.20")
    assert finding.state == "unknown version"
    assert finding.remedy == f"{doctor.PIP} --force-reinstall 'timm>=1.0.20'"


@pytest.mark.parametrize("error", [FileNotFoundError("No package metadata"), KeyError("Version")])
def test_damaged_metadata_that_importlib_metadata_reads(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it has been imported, Python's own module finds packages by it."""
    monkeypatch.setattr(importlib.metadata, "version", mock.Mock(side_effect=error))
    assert doctor.find_package("timm>=1.0.20").state == "unknown version"


def test_any_opencv_will_do() -> None:
    finding = doctor.find_package("opencv-python")
    assert finding.subject.startswith("opencv-")
    assert finding.remedy is None


@pytest.mark.parametrize(
    "found",
    [
        {"side_effect": importlib.metadata.PackageNotFoundError("vitadapter")},
        {"side_effect": FileNotFoundError("No package metadata")},
        {"return_value": None},
    ],
)
def test_requirements_without_metadata(found: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a source that is not installed, or whose metadata are damaged."""
    installed = doctor._requirements()
    monkeypatch.setattr(importlib.metadata, "requires", mock.Mock(**found))
    assert "timm>=1.0.20" in doctor._requirements()
    assert sorted(doctor._requirements()) == sorted(installed)
