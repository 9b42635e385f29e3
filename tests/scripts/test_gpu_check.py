"""`scripts/gpu_check.sh`: a dry run, machines on which it cannot run, and parts that fail."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FAKE_TORCH = """
class version: cuda = {cuda!r}
class cuda:
    is_available = staticmethod(lambda: {gpu!r} is not None)
    device_count = staticmethod(lambda: 1)
    get_device_capability = staticmethod(lambda index: {gpu!r}[1:])
    class get_device_properties:
        def __init__(self, index): self.name, self.major, self.minor = {gpu!r}
class __config__: parallel_info = staticmethod(lambda: "")
__version__ = {version!r}
"""
FAKE_EXTENSION = """
from setuptools import Extension as CppExtension
from setuptools.command.build_ext import build_ext as BuildExtension
get_cxx_compiler = lambda: "sh"
"""
H200, GTX_1080 = ("NVIDIA H200", 9, 0), ("NVIDIA GeForce GTX 1080", 6, 1)


def gpu_check(
    repository: Path, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    hidden = {"CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "VITADAPTER_CUDA", "PYTHON"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        ["bash", repository / "scripts" / "gpu_check.sh", *map(str, arguments)],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (dict(version="2.5.1+cu121"), "torch>=2.6 is needed, got 2.5.1+cu121"),
        (dict(cuda=None), "torch 2.11.0 is built without CUDA"),
        (dict(gpu=None), "PyTorch sees no NVIDIA GPU"),
        (dict(gpu=GTX_1080), "(sm_75, Turing) or newer, got NVIDIA GeForce GTX 1080 with 6.1"),
        (dict(), "VITADAPTER_CUDA=1, but no nvcc (looked at CUDA_HOME, PATH"),
        (None, "cannot import PyTorch (hidden)"),
    ],
)
def test_machines_that_cannot_run_it(
    fake: dict[str, object] | None, reason: str, repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "torch" / "utils").mkdir(parents=True)
    (tmp_path / "torch" / "utils" / "cpp_extension.py").write_text(FAKE_EXTENSION)
    text = "raise ImportError('hidden')"
    if fake is not None:
        text = FAKE_TORCH.format(**{"version": "2.11.0", "cuda": "13.0", "gpu": H200, **fake})
    (tmp_path / "torch" / "__init__.py").write_text(text)
    folders = os.environ["PATH"].split(os.pathsep)
    without_nvcc = os.pathsep.join(f for f in folders if not Path(f, "nvcc").exists())
    environment = dict(PYTHON=sys.executable, PYTHONPATH=str(tmp_path), PATH=without_nvcc)
    done = gpu_check(repository, tmp_path / "out", **environment)
    assert done.returncode == 2
    assert reason in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--dryrun"], "unknown option '--dryrun'"),
        (["a", "b"], "got a second one, 'b'"),
        (["--seconds", "0"], "must be a number of at least 1, got '0'"),
        (["--wheels", "no/folder"], "--wheels must be a folder, got '"),
        (["--collect"], "--collect needs a value"),
    ],
)
def test_mistakes(arguments: list[str], reason: str, repository: Path) -> None:
    done = gpu_check(repository, *arguments)
    assert done.returncode == 2
    assert reason in done.stderr


def test_it_explains_itself(repository: Path) -> None:
    done = gpu_check(repository, "--help")
    assert done.returncode == 0
    assert "--collect FOLDER" in done.stdout
    folder = repository / "scripts"
    here = subprocess.run(
        ["bash", "gpu_check.sh", "--help"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (here.returncode, here.stdout) == (0, done.stdout)


@pytest.fixture
def stand_in(tmp_path: Path, repository: Path) -> Iterator[Path]:
    """A copy of the scripts, and a Python that notes its calls and writes the report only.

    Lines of the file "behaviour" are what it does instead, as cases of a shell.
    """
    shutil.copytree(repository / "scripts", tmp_path / "scripts")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("pytestmark = pytest.mark.gpu\n")
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
        echo "$TORCH_CUDA_ARCH_LIST $*" >>"{tmp_path}/calls"
        . "{tmp_path}/behaviour"
        case "$*" in
            *gpu_machine.py*) echo 9.0 ;;
            *--output*) exec "{sys.executable}" "$@" ;;
            *doctor*) echo 'devices  NVIDIA H200' ;;
        esac
        """
    )
    python.chmod(0o755)
    (tmp_path / "behaviour").write_text("")
    return tmp_path


def stand_in_check(folder: Path, *arguments: str, path: str = "") -> tuple[int, dict, str]:
    """The exit status, report.json and report.md."""
    path = os.pathsep.join(filter(None, (path, os.environ["PATH"])))
    options = dict(PYTHON=str(folder / "python"), PATH=path)
    done = gpu_check(folder, folder / "out", *arguments, **options)
    assert (folder / "out" / "report.md").is_file(), done.stderr
    report = json.loads((folder / "out" / "report.json").read_text())
    return done.returncode, report, (folder / "out" / "report.md").read_text()


def test_everything_is_done_for_the_gpu_at_hand(stand_in: Path) -> None:
    sanitizer = stand_in / "bin" / "compute-sanitizer"
    sanitizer.parent.mkdir()
    sanitizer.write_text("#!/bin/sh\necho $PYTORCH_NO_CUDA_MEMORY_CACHING sanitizer $*\n")
    sanitizer.chmod(0o755)
    status, report, text = stand_in_check(stand_in, path=str(sanitizer.parent))
    assert (status, report["failed"]) == (0, [])
    calls = (stand_in / "calls").read_text().splitlines()
    assert "9.0 setup.py build --build-lib build/gpu_check/lib" in calls
    assert any(call.endswith("-m gpu -q -p no:cacheprovider tests/test_a.py") for call in calls)
    names = [section["name"] for section in report["sections"]]
    assert names[:5] == ["build", "environment", "tests", "memcheck", "racecheck"]
    assert names[5:] == ["operator", "training", "detectors", "compiled", "backbone"]
    logs = {section["name"]: section["log"] for section in report["sections"]}
    assert logs["racecheck"].startswith("1 sanitizer --tool racecheck --error-exitcode 9")
    assert "- devices: NVIDIA H200" in text


def test_what_fails_is_reported_and_the_rest_goes_on(stand_in: Path) -> None:
    (stand_in / "behaviour").write_text(
        'case "$*" in *build-lib*) echo no such kernel; exit 1 ;; esac\n'
        'case "$*" in *"--parts detectors") kill -SEGV $$ ;; esac\n'
    )
    status, report, text = stand_in_check(stand_in)
    assert status == 1
    failed = ["build: failed (exit status 1)", "detectors: failed (exit status 139)"]
    assert report["failed"] == failed
    assert "```\nno such kernel\n```" in text
    assert "| compiled | passed |" in text
    if not shutil.which("compute-sanitizer"):
        assert report["left_out"] == dict.fromkeys(
            ("memcheck", "racecheck"), "compute-sanitizer is not installed"
        )


def test_parts_whose_time_is_over_are_cut(stand_in: Path) -> None:
    row = {"case": "a", "seconds": 1.5, "losses": [2.0, 1.0]}
    outcome = json.dumps(dict(planned=["a", "b"], rows=[row]))
    (stand_in / "behaviour").write_text(
        f"""case "$*" in *"--parts training")
            echo '{outcome}' >"$2/training.json"
            exec sleep 60
        esac
        """
    )
    status, report, text = stand_in_check(stand_in, "--seconds", "96")
    assert status == 0
    assert report["left_out"]["training"] == "its time was over"
    assert report["left_out"]["training, b"] == "not reached"
    assert "| backbone | passed |" in text
    assert "| a | 1.50 |" in text


def test_missing_packages_come_from_the_folder(stand_in: Path) -> None:
    (stand_in / "behaviour").write_text(
        'case "$*" in *gpu_machine.py*) printf "9.0\\nfvcore\\nomegaconf>=2.1,<2.4\\n"; exit ;;\n'
        "*find_spec*) exit 1 ;; esac\n"
    )
    wheels = stand_in / "wheels"
    wheels.mkdir()
    (wheels / "deformops-3.0.1-py3-none-any.whl").touch()
    status, report, _ = stand_in_check(stand_in, "--wheels", str(wheels))
    assert status == 0
    assert [section["name"] for section in report["sections"]][:3] == [
        *("packages", "detectron2", "deformops")
    ]
    installs = [c for c in (stand_in / "calls").read_text().splitlines() if " install " in c]
    assert all(f"--no-index --find-links {wheels}" in call for call in installs)
    assert installs[0].endswith("fvcore omegaconf>=2.1,<2.4")
    assert installs[1].endswith("--python-version 3.10 sal-detectron2==0.7.2")


@pytest.mark.parametrize("megabytes", [1, 20])
def test_collecting_keeps_within_its_size(stand_in: Path, megabytes: int) -> None:
    """Of the four calls of pip, three fetch one file, and one builds one."""
    (stand_in / "behaviour").write_text(
        f'case "$*" in *"-m pip"*) truncate -s {megabytes}M "{stand_in}/wheels/$$.whl" ;; esac\n'
    )
    python = str(stand_in / "python")
    done = gpu_check(stand_in, "--collect", stand_in / "wheels", PYTHON=python)
    calls = (stand_in / "calls").read_text()
    assert all(f"--python-version {version} " in calls for version in ("3.11", "3.12"))
    assert "setuptools<82 wheel ninja" in calls
    if megabytes == 20:
        assert done.returncode == 2
        assert "MB, more than 40" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "5 wheels, 5 MB" in done.stdout


@pytest.fixture(scope="module")
def dry_run(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("gpu_check")
    return gpu_check(repository, "--dry-run", folder, PYTHON=sys.executable), folder


def test_dry_run(dry_run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, folder = dry_run
    assert done.returncode == 0, (folder / "log.txt").read_text()
    report = json.loads((folder / "report.json").read_text())
    assert report["failed"] == []
    assert {section["name"] for section in report["sections"]} == {
        *("environment", "tests", "memcheck", "racecheck", "measured")
    }
    measured = report["measured"]
    operators = {(row["case"], row.get("implementation")) for row in measured["operator"]}
    for dtype in ("float32", "float16", "bfloat16"):
        for use in ("injector", "extractor"):
            for size in "TSB":
                for name in ("grid_sample", "ours", "ours, fused"):
                    assert (f"{use} {size}, {dtype}", name) in operators
    assert all(
        row["difference"] < (0.1 if "fused" in row["implementation"] else 0.01)
        for row in measured["operator"]
        if str(row.get("implementation")).startswith("ours")
    )
    cases = {"tiny, float32", "tiny, bfloat16"}
    for part, third in (("backbone", "ViTDet"), ("compiled", "ours, compiled")):
        rows = measured[part]
        assert {row["case"] for row in rows} == (
            cases if part == "backbone" else {"tiny, bfloat16"}
        )
        assert {row["implementation"] for row in rows} == {"reference", "ours", third}
        for row in rows:
            assert row["step_ms"] > row["forward_ms"] > 0
            assert row["step_peak_mb"] > row["forward_peak_mb"] > 0
    models = {row["case"] for row in measured["detectors"]}
    names = ("Mask R-CNN, ViT-Adapter-S", "Mask2Former, ViT-Adapter-L")
    assert models == {f"{name}, {p}" for name in names for p in ("float32", "bfloat16")}
    assert all(row["images_per_s"] > 0 < row["inference_ms"] for row in measured["detectors"])
    (training,) = measured["training"]
    assert training["last_loss"] < training["first_loss"]
    assert len(training["losses"]) == 12


def test_report_of_the_dry_run(dry_run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, folder = dry_run
    text = (folder / "report.md").read_text()
    assert "its figures mean nothing" in text
    for words in ("Left out", "The operator", "Backbones", "torch.compile", "Models", "quickstart"):
        assert words in text
    assert "- operator, peers: mmcv: runs on GPUs only" in text
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == ["backbone.png", "operator.png", "training.png"]
    assert all(f"![{name}]({name})" in text for name in pictures)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5e6
    assert "Nothing is missing: training can run here." in text
