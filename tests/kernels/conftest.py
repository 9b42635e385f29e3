"""The CUDA operators on the emulated device."""

import shutil
from pathlib import Path

import pytest
from cuda_emulation_cases import build, load
from torch._ops import _OpNamespace


@pytest.fixture(scope="session")
def kernels(repository: Path) -> Path:
    """The folder of the kernels; there must be a compiler for them."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    return repository / "kernels" / "ms_deform_attn"


@pytest.fixture(scope="session")
def library(kernels: Path) -> Path:
    """The build for the emulated device, in all dtypes."""
    return build(kernels)


@pytest.fixture(scope="session")
def emulated(library: Path) -> _OpNamespace:
    """The operators of that build, for CPU tensors."""
    return load(library)
