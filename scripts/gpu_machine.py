#!/usr/bin/env python
"""Says whether scripts/gpu_check.sh can run here; needs nothing but PyTorch.

Prints the GPU's compute capability, as TORCH_CUDA_ARCH_LIST takes it, and then, a line each, the
packages of gpu_requirements.txt that are missing. Ends with 2 and the reason where it cannot run.
"""

import argparse
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from vitadapter import doctor

OLDEST_PYTHON = (3, 11)  # whose PYTHONSAFEPATH the script needs
OLDEST_TORCH = (2, 6)
OLDEST_GPU = (7, 5)  # the oldest of setup.py's CUDA_ARCHITECTURES
REQUIREMENTS = Path(__file__).with_name("gpu_requirements.txt")


class UnusableError(Exception):
    """Why the check cannot run here."""


def check_torch() -> None:
    """Raises an `UnusableError` unless PyTorch can be imported and is new enough."""
    try:
        import torch
    except (ImportError, OSError) as error:
        raise UnusableError(
            f"{sys.executable} cannot import PyTorch ({error}); PYTHON=/path/to/python names "
            "another"
        ) from error
    found = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if found < OLDEST_TORCH:
        raise UnusableError(f"torch>=2.6 is needed, got {torch.__version__}")


def capability() -> tuple[int, int]:
    """The compute capability of the first GPU; an `UnusableError` if none will do."""
    import torch

    if torch.version.cuda is None:
        raise UnusableError(
            f"torch {torch.__version__} is built without CUDA; https://pytorch.org has the command "
            "that installs one with CUDA"
        )
    if not torch.cuda.is_available():
        raise UnusableError(
            "PyTorch sees no NVIDIA GPU (nvidia-smi tells whether the driver does). --dry-run "
            "tries everything at toy size on the CPU"
        )
    gpu = torch.cuda.get_device_properties(0)
    if (gpu.major, gpu.minor) < OLDEST_GPU:
        raise UnusableError(
            f"the kernels need a GPU of compute capability 7.5 (sm_75, Turing) or newer, got "
            f"{gpu.name} with {gpu.major}.{gpu.minor} (sm_{gpu.major}{gpu.minor})"
        )
    return gpu.major, gpu.minor


def missing() -> list[str]:
    """The packages that are not installed, as the file names them."""
    lines = (line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines())
    return [line for line in lines if line and doctor.find_package(line).remedy is not None]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="without a GPU; prints cpu instead")
    args = parser.parse_args(arguments)
    try:
        if sys.version_info < OLDEST_PYTHON:
            raise UnusableError(f"Python 3.11 or newer is needed, got {platform.python_version()}")
        check_torch()
        print("cpu" if args.dry_run else "{}.{}".format(*capability()))
    except UnusableError as error:
        print(f"gpu_check.sh: {error}", file=sys.stderr)
        return 2
    print("\n".join(missing()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
