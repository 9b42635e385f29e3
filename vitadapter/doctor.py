"""Prints what a bug report needs, and the commands that mend an installation.

``python -m vitadapter.doctor`` works where PyTorch or Detectron2 are missing or broken too: every
question is asked in another process, which may fail or crash.
"""

import argparse
import importlib
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import vitadapter
from vitadapter import install_detectron2

__all__ = ["Finding", "examine", "find_package", "main"]

COMMAND = "python -m vitadapter.doctor"
PIP = "python -m pip install"
MARK = "vitadapter.doctor:"  # begins the lines of the other process that are meant for us
TIMEOUT = 300  # seconds without an answer, after which a question counts as failed
# Distributions that bring the same package.
SAME = {"opencv-python": ("opencv-python-headless", "opencv-contrib-python")}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        state: what was found.
        remedy: what mends it; None if nothing keeps training from running.
    """

    subject: str
    state: str
    remedy: str | None = None


def _requirements() -> list[str]:
    """What vitadapter and Detectron2 require, such as "timm>=1.0.20"."""
    try:
        ours = importlib.metadata.requires("vitadapter") or []
    except (importlib.metadata.PackageNotFoundError, FileNotFoundError):  # run from its source
        ours = []
    ours = ours or _declared()  # its metadata may be damaged
    ours = [line for line in ours if ";" not in line]
    names = {_name(line) for line in ours}
    return ours + [line for line in install_detectron2.REQUIREMENTS if _name(line) not in names]


def _declared() -> list[str]:
    """The same, as the source code has it."""
    file = Path(vitadapter.__file__).parents[1] / "pyproject.toml"
    if not file.is_file():
        return ["torch>=2.6", "torchvision"]
    # Python 3.10 has no parser of TOML.
    listed = file.read_text().partition("\ndependencies = [")[2].partition("\n]")[0]
    return re.findall(r'^ *"([^"]+)"', listed, re.MULTILINE)


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3]]


def _allows(limits: Sequence[tuple[str, str]], version: str) -> bool:
    compare = {
        ">=": lambda have, limit: have >= limit,
        ">": lambda have, limit: have > limit,
        "<": lambda have, limit: have < limit,
        "<=": lambda have, limit: have <= limit,
    }
    return all(compare[sign](_numbers(version), _numbers(limit)) for sign, limit in limits)


def find_package(requirement: str) -> Finding:
    """Whether a requirement is installed, and whether its version will do.

    Args:
        requirement: such as "timm>=1.0.20".

    Returns:
        Its version, or what is wrong; it has a remedy unless the requirement is met.
    """
    name = _name(requirement)
    limits = re.findall(r"(>=|<=|>|<)\s*([\w.]+)", requirement)
    for distribution in (name, *SAME.get(name, ())):
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        except (FileNotFoundError, KeyError):  # of importlib_metadata, which a package may import
            version = None
        if not version:  # a damaged installation
            return Finding(name, "unknown version", f"{PIP} --force-reinstall '{requirement}'")
        if _allows(limits, version):
            return Finding(distribution, version)
        state = f"{version}, but {requirement} is needed"
        return Finding(distribution, state, f"{PIP} --upgrade '{requirement}'")
    return Finding(name, "not installed", f"{PIP} '{requirement}'")


def _torch() -> str:
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return f"{torch.__version__}, {cuda}, CPU {torch.backends.cpu.get_cpu_capability()}"


def _devices() -> str:
    import torch

    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    found = [
        f"{d.name} (compute capability {d.major}.{d.minor}, {d.total_memory / 2**30:.0f} GiB)"
        for d in devices
    ]
    return "; ".join(found) or f"no GPU; {torch.get_num_threads()} CPU threads"


def _operators() -> str:
    from vitadapter.ops.library import describe_build

    return describe_build()


def _detectron2() -> str:
    import detectron2.engine
    import detectron2.evaluation

    try:
        importlib.import_module("detectron2._C")
        binary = "its _C loads"
    except ImportError as error:
        binary = f"its _C, which is not needed, does not load ({error})"
    return f"{detectron2.__version__} in {Path(detectron2.__file__).parent}; {binary}"


def _import(name: str) -> str:
    module = importlib.import_module(name)
    return f"{getattr(module, '__version__', '')} works".strip()


REINSTALL = f"{PIP} --force-reinstall --no-deps"
# Questions to another process, and what mends them. Later ones need what earlier ones ask for.
PROBES: dict[str, tuple[Callable[[], str], str]] = {
    "PyTorch": (_torch, f"{PIP} 'torch>=2.6' torchvision"),
    "devices": (_devices, "see the error; a GPU needs a driver that fits PyTorch's CUDA"),
    "NumPy": (partial(_import, "numpy"), f"{REINSTALL} numpy"),
    "torchvision": (
        partial(_import, "torchvision"),
        f"{PIP} --force-reinstall torch torchvision (they must be of versions that fit)",
    ),
    "OpenCV": (
        partial(_import, "cv2"),
        "python -m pip uninstall opencv-python opencv-python-headless, then "
        f"{PIP} opencv-python-headless (it needs no libGL)",
    ),
    "SciPy": (partial(_import, "scipy.optimize"), f"{REINSTALL} scipy"),
    "pycocotools": (partial(_import, "pycocotools.mask"), f"{REINSTALL} pycocotools"),
    "timm": (partial(_import, "timm"), f"{REINSTALL} timm"),
    "operators": (_operators, "see the error, which names the command"),
    "Detectron2": (_detectron2, f"{install_detectron2.COMMAND} (with --force to replace one)"),
    "training": (
        partial(_import, "vitadapter.engine.trainer"),
        "the lines above; if there are none, please report this",
    ),
}


def probe(names: Sequence[str]) -> None:
    """Runs in the other process: answers the questions of these names, a line for each."""
    for name in names:
        print(MARK + json.dumps({"asked": name}), flush=True)
        try:
            answer = {"state": PROBES[name][0]()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(MARK + json.dumps(answer), flush=True)


def _ask(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The answers of another process, to the question that ended it at last."""
    program = f"from vitadapter.doctor import probe; probe({list(names)})"
    command = [sys.executable, "-W", "ignore", "-c", program]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        said, end = done.stdout, f"ends Python with exit status {done.returncode}"
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""  # bytes, although `text` is set, in most versions of Python
        said = output if isinstance(output, str) else output.decode(errors="replace")
        end = f"no answer within {TIMEOUT} seconds"
    answers, asked = {}, names[0]
    for line in said.splitlines():
        if line.startswith(MARK):
            content = json.loads(line.removeprefix(MARK))
            asked = content.pop("asked", asked)
            answers[asked] = content or {"error": end}
    return answers or {asked: {"error": end}}


def _probed() -> list[Finding]:
    """A finding for each question; after a crash, another process answers the rest."""
    findings: list[Finding] = []
    left = list(PROBES)
    while left:
        for name, answer in _ask(left).items():
            left.remove(name)
            remedy = PROBES[name][1] if "error" in answer else None
            findings.append(Finding(name, answer.get("state") or answer["error"], remedy))
    return findings


def examine() -> list[Finding]:
    """Everything that is known about this installation."""
    place = Path(vitadapter.__file__).parent
    python = f"{platform.python_version()} ({sys.executable})"
    old = sys.version_info < (3, 10)
    return [
        Finding("vitadapter", f"{vitadapter.__version__} in {place}"),
        Finding("Python", python, "use Python 3.10 or newer" if old else None),
        Finding("system", platform.platform()),
        *map(find_package, _requirements()),
        *_probed(),
    ]


def main(arguments: Sequence[str] | None = None, prog: str = COMMAND) -> int:
    """Prints the report.

    Returns:
        The exit status: 0 if training could run here, else 1.
    """
    argparse.ArgumentParser(prog=prog, description=__doc__.partition("\n")[0]).parse_args(arguments)
    findings = examine()
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{finding.subject:{width}}  {finding.state}")
    problems = [finding for finding in findings if finding.remedy is not None]
    if not problems:
        print("\nNothing is missing: training can run here.")
    else:
        print("\nTraining cannot run here. Mend these, from the first on:")
    for finding in problems:
        print(f"\n  {finding.subject}: {finding.state}\n      {finding.remedy}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
