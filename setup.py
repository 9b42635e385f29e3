"""Builds the compiled operators; everything else about the package is in pyproject.toml."""

import shlex
import shutil
import sysconfig
from pathlib import Path

from setuptools import Extension, find_namespace_packages, find_packages, setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler
except ImportError as error:
    raise SystemExit(
        "vitadapter: the operators are compiled against the PyTorch that they will run with, but "
        f"torch cannot be imported here ({error}). Install torch>=2.6 first and keep pip from "
        "building in an isolated environment: pip install --no-build-isolation ."
    ) from error

# Oldest Python whose stable ABI the extension uses; one binary serves all later ones.
PYTHON_ABI = ("0x030A0000", "cp310")


def missing_for_build() -> str | None:
    """What this machine lacks to compile the operators, in words; None if nothing."""
    if shutil.which(shlex.split(get_cxx_compiler())[0]) is None:
        return f"no C++ compiler ({get_cxx_compiler()}; on Debian: apt install g++)"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.is_file():
        return f"no Python headers ({header}; on Debian: apt install python3-dev)"
    return None


def openmp_flags() -> list[str]:
    """Flags that let ``at::parallel_for`` use PyTorch's own threads.

    ATen's parallel loops are templates: compiled without OpenMP they silently run on one thread.
    Nothing is linked, so the loader takes the OpenMP runtime that PyTorch has already loaded.
    """
    uses_openmp = "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()
    return ["-fopenmp"] if uses_openmp else []


def operator_extension() -> Extension:
    """The shared library ``vitadapter._C`` with every kernel that this machine can compile."""
    sources = sorted(str(path) for path in Path("kernels").rglob("*.cpp"))
    return CppExtension(
        "vitadapter._C",
        sources,
        extra_compile_args={
            "cxx": ["-O3", "-g0", f"-DPy_LIMITED_API={PYTHON_ABI[0]}", *openmp_flags()],
        },
        depends=sorted(str(path) for path in Path("kernels").rglob("*.h")),
        py_limited_api=True,
    )


class BuildOperators(BuildExtension):
    """Says what is built, and keeps the object files so that a second build is incremental."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Editable installs would use a fresh temporary folder each time.
        self.build_temp = "build/operators"

    def run(self) -> None:
        print(
            f"vitadapter: building the C++ operators for CPU against torch {torch.__version__}",
            flush=True,
        )
        super().run()


def packages() -> list[str]:
    """The package itself, and ``configs/`` under the name ``vitadapter.configs``."""
    configs = ["vitadapter.configs"]
    configs += [f"vitadapter.configs.{name}" for name in find_namespace_packages("configs")]
    return find_packages(include=["vitadapter", "vitadapter.*"]) + configs


missing = missing_for_build()
if missing is not None:
    print(
        f"vitadapter: not building the C++ operators: {missing}. The slower PyTorch "
        "implementation will serve in their place.",
        flush=True,
    )

setup(
    packages=packages(),
    package_dir={"vitadapter.configs": "configs"},
    ext_modules=[operator_extension()] if missing is None else [],
    cmdclass={"build_ext": BuildOperators},
    options={"bdist_wheel": {"py_limited_api": PYTHON_ABI[1]}} if missing is None else {},
)
