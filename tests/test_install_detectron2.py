"""Detectron2 installed from a folder of made wheels, into an environment that has only pip."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pip
import pytest

import vitadapter
from vitadapter.install_detectron2 import PACKAGE, REQUIREMENTS, main

WHEEL = PACKAGE.replace("-", "_").replace("==", "-")
# Imports vitadapter alone, not what lies beside it.
PROGRAM = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("install", {main.__code__.co_filename!r})
sys.modules["install"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.exit(module.main())
"""


def make_wheel(folder: Path, stem: str, tag: str, files: dict[str, str]) -> None:
    name, version = stem.split("-")
    info = f"{stem}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if "detectron2" in name:
        metadata += "Requires-Dist: numpy<2\n"
    files = files | {
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{stem}-{tag}.whl", "w") as archive:
        for file, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(file, text)


class Environment:
    """A virtual environment with pip, whose index is a folder."""

    def __init__(self, folder: Path) -> None:
        self.index = folder / "index"
        self.index.mkdir()
        venv.create(folder / "venv", symlinks=True)
        self.python = folder / "venv" / "bin" / "python"
        (self.site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        (self.site / "pip").symlink_to(Path(pip.__file__).parent)
        self.folder = folder

    def offer_all(self) -> None:
        """Detectron2's wheel, tagged as the real one, and versions that are just new enough."""
        package = dict.fromkeys(("engine", "evaluation"), "")
        files = {f"detectron2/{name}.py": text for name, text in package.items()}
        files["detectron2/__init__.py"] = "import yacs"
        make_wheel(self.index, WHEEL, "cp310-none-any", files)
        for requirement in REQUIREMENTS:
            name, limit = re.match(r"([\w-]+)(?:>=?([\d.]+))?", requirement).groups()
            stem = f"{name.replace('-', '_')}-{limit or '1'}.1"
            make_wheel(self.index, stem, "py3-none-any", {f"{name}.py": ""})

    def install(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        hidden = ("PYTHONPATH", "PIP_CONSTRAINT", "PIP_EXTRA_INDEX_URL")
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        environment |= dict(
            PIP_NO_INDEX="1", PIP_FIND_LINKS=str(self.index), PIP_CONFIG_FILE=os.devnull
        )
        return subprocess.run(
            [self.python, "-c", PROGRAM, *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def has(self, *paths: str) -> Sequence[bool]:
        return [(self.site / path).exists() for path in paths]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def test_installs_once_and_replaces_by_force(environment: Environment) -> None:
    environment.offer_all()
    done = environment.install()
    assert done.returncode == 0, done.stderr
    assert f"{PACKAGE} is installed in {environment.site}" in done.stdout
    files = ("detectron2/engine.py", "yacs.py", f"{WHEEL}.dist-info")
    assert environment.has(*files) == [True] * 3

    again = environment.install()
    assert again.returncode == 0, again.stderr
    assert f"Detectron2 is already in {environment.site / 'detectron2'}" in again.stdout

    broken = environment.site / "detectron2" / "__init__.py"
    broken.write_text("import no_such_module")
    (environment.site / "detectron2" / "of_the_old_one.py").touch()
    refused = environment.install()
    assert refused.returncode == 1
    assert "No module named 'no_such_module'" in refused.stderr
    assert "--force" in refused.stderr
    assert "no_such_module" in broken.read_text()

    forced = environment.install("--force")
    assert forced.returncode == 0, forced.stderr
    assert broken.read_text() == "import yacs"


def test_failed_download_keeps_the_old_one(environment: Environment) -> None:
    old = environment.site / "detectron2"
    old.mkdir()
    (old / "__init__.py").write_text("__version__ = 'own build'")
    done = environment.install("--force")
    assert done.returncode == 1
    assert "pip ended with status 1" in done.stderr
    assert "PIP_FIND_LINKS" in done.stderr
    assert "Traceback" not in done.stderr
    assert (old / "__init__.py").read_text() == "__version__ = 'own build'"


def test_folder_that_pip_did_not_make_is_not_replaced(environment: Environment) -> None:
    environment.offer_all()
    old = environment.folder / "detectron2"
    old.mkdir()
    (old / "__init__.py").touch()
    done = environment.install("--force")
    assert done.returncode == 1
    assert f"pip did not install the Detectron2 in {old}" in done.stderr
    assert environment.has("detectron2") == [False]


def test_environment_without_pip(environment: Environment) -> None:
    (environment.site / "pip").unlink()
    done = environment.install()
    assert done.returncode == 1
    assert f"has no pip ({environment.python} -m ensurepip installs it)" in done.stderr


# Rooms, and modules of those that work without Detectron2.
NEED_DETECTRON2 = [
    *(
        "analysis",
        "checkpoint",
        "commands",
        "data",
        "engine",
        "evaluation",
        "export",
        "model_zoo",
        "modeling",
        "report",
        "solver",
        "web",
    ),
    *(
        "visualization",
        "layers.conv_norm_relu",
        "layers.mean_over_processes",
        "layers.nms",
    ),
]
WITHOUT_DETECTRON2 = ["doctor", "install_detectron2", "layers.fast", "ops", "sample_data"]
HIDE = """
import importlib, importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "detectron2" else find_spec(name, *a)
sys.modules["detectron2"] = None
for name in sys.argv[1:]:
    try:
        importlib.import_module(f"vitadapter.{name}")
        print(name, "works")
    except ImportError as error:
        print(name, error)
"""


def test_without_detectron2_every_room_works_or_says_how_to_install_it() -> None:
    package = Path(vitadapter.__file__).parent
    users = {
        path.relative_to(package).with_suffix("").as_posix().replace("/", ".")
        for path in package.rglob("*.py")
        if re.search(r"^from detectron2|^import detectron2", path.read_text(), re.MULTILINE)
    }
    assert [
        u for u in users if not f"{u}.".startswith(tuple(f"{n}." for n in NEED_DETECTRON2))
    ] == []
    command = [sys.executable, "-c", HIDE, *NEED_DETECTRON2, *WITHOUT_DETECTRON2]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert {name: said[name] for name in WITHOUT_DETECTRON2} == dict.fromkeys(
        WITHOUT_DETECTRON2, "works"
    )
    for name in NEED_DETECTRON2:
        assert "Install it with: python -m vitadapter.install_detectron2" in said[name], name
