"""Builds the compiled operators; everything else about the package is in pyproject.toml.

Where they cannot be compiled (pip's isolated build has no PyTorch), the wheel is a pure one, which
computes them in PyTorch. In the environment, ``VITADAPTER_COMPILE=0`` or ``1`` forbids or demands
that they are compiled, ``VITADAPTER_CUDA=0`` or ``1`` their CUDA kernels, and
``TORCH_CUDA_ARCH_LIST`` names the architectures that these are compiled for.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_namespace_packages, find_packages, setup
from setuptools.command.build_py import build_py

try:
    import torch
    from torch.utils import cpp_extension
    from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler

    NO_TORCH = None
except (ImportError, OSError) as error:
    from setuptools.command.build_ext import build_ext as BuildExtension

    NO_TORCH = (
        f"there is no PyTorch to compile them against ({error}). Install torch>=2.6 and build with "
        "pip install --no-build-isolation ."
    )

# Parts of the package that lie elsewhere in the repository.
MAPPED_PACKAGES = {
    "vitadapter.configs": "configs",
    "vitadapter.experiments": "projects/ViTAdapter/configs",
    "vitadapter.sample_data": "scripts/sample_data",
}
# Oldest Python whose stable ABI the extension uses; one binary serves all later ones.
PYTHON_ABI = ("0x030A0000", "cp310")
# Compiled for where no GPU is there to ask; those that the toolkit knows of them.
CUDA_ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")


def wish(name: str) -> str:
    """What the environment says of a choice: "1" demands, "0" forbids, "" leaves it to us."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"vitadapter: {name} must be 0 or 1, got {value!r}")
    return value


def missing_for_build() -> str | None:
    """What this machine lacks to compile the operators, in words; None if nothing."""
    if NO_TORCH is not None:
        return NO_TORCH
    if shutil.which(shlex.split(get_cxx_compiler())[0]) is None:
        return f"no C++ compiler ({get_cxx_compiler()}; on Debian: apt install g++)"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.is_file():
        return f"no Python headers ({header}; on Debian: apt install python3-dev)"
    return None


def why_not_compiled() -> str | None:
    """Why the operators are not compiled; None if they are.

    Raises:
        SystemExit: the environment demands them, or their CUDA kernels.
    """
    reason = "VITADAPTER_COMPILE=0" if wish("VITADAPTER_COMPILE") == "0" else missing_for_build()
    for name in ("VITADAPTER_COMPILE", "VITADAPTER_CUDA"):
        if reason is not None and wish(name) == "1":
            raise SystemExit(f"vitadapter: {name}=1, but {reason}")
    return reason


@dataclass
class CudaToolkit:
    """An nvcc and what goes with it."""

    home: Path
    version: str
    include: list[Path]
    runtime: Path  # libcudart

    def nvcc(self, *arguments: str) -> str:
        """What nvcc says, on either stream."""
        command = [str(self.home / "bin" / "nvcc"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def failure(self) -> str | None:
        """The first error that a smallest kernel meets, None if it compiles.

        pip's packages come in parts, which may be missing or of versions that do not go together.
        """
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "kernel.cu")
            source.write_text("#include <cuda_fp16.h>\n__global__ void kernel() {}\n")
            include = [f"-I{path}" for path in self.include]
            said = self.nvcc(
                "-cubin", *include, "-o", str(source.with_suffix(".cubin")), str(source)
            )
        errors = re.findall(r"^.*(?:error|fatal).*$", said, re.MULTILINE)
        return errors[0] if errors else None


def cuda_homes() -> list[Path]:
    """Where an nvcc may be: the environment, the search path, pip's packages; in this order."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if shutil.which("nvcc"):
        # The nvcc on the path may be a script or link outside of its toolkit, so it is asked.
        done = subprocess.run(
            ["nvcc", "--dryrun", "-E", "-x", "cu", os.devnull],
            capture_output=True,
            text=True,
            check=False,
        )
        homes += [Path(found).parent for found in re.findall(r"_HERE_=(.+)", done.stderr)]
    site = Path(sysconfig.get_paths()["purelib"], "nvidia")
    homes += [*sorted(site.glob("cu[0-9]*"), reverse=True), site / "cuda_nvcc"]
    return [home for home in homes if (home / "bin" / "nvcc").is_file()]


def cuda_toolkit() -> CudaToolkit | str:
    """The first toolkit that fits torch, or why there is none."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    major = torch.version.cuda.partition(".")[0]
    reason = "no nvcc (looked at CUDA_HOME, PATH and pip's nvidia-cuda-nvcc)"
    site = Path(sysconfig.get_paths()["purelib"], "nvidia")
    for home in cuda_homes():
        roots = [home, site / f"cu{major}", site / "cuda_runtime"]
        include = [root / "include" for root in roots if (root / "include").is_dir()]
        folders = [root / name for root in roots for name in ("lib64", "lib")]
        names = ("libcudart.so", f"libcudart.so.{major}")
        runtimes = [folder / name for folder in folders for name in names]
        runtimes = [path for path in runtimes if path.is_file()]
        if not any((folder / "cuda_runtime.h").is_file() for folder in include) or not runtimes:
            reason = f"the toolkit {home} lacks cuda_runtime.h or libcudart"
            continue
        toolkit = CudaToolkit(home, "", include, runtimes[0])
        found = re.search(r"release (\d+\.\d+)", toolkit.nvcc("--version"))
        toolkit.version = found[1] if found else "unknown"
        if toolkit.version.partition(".")[0] != major:
            reason = (
                f"nvcc {toolkit.version} in {home} does not fit torch's CUDA {torch.version.cuda}"
            )
            continue
        failure = toolkit.failure()
        if failure is None:
            return toolkit
        reason = (
            f"nvcc {toolkit.version} in {home} compiles nothing ({failure}); by pip it takes "
            "nvidia-cuda-nvcc, -crt, -cccl, -runtime and nvidia-nvvm of one release"
        )
    return reason


def cuda_or_why_not() -> CudaToolkit | str:
    """The toolkit to build the CUDA kernels with, or why they are not built."""
    wanted = wish("VITADAPTER_CUDA")
    if wanted == "0":
        return "VITADAPTER_CUDA=0"
    if wanted == "" and not torch.cuda.is_available() and "TORCH_CUDA_ARCH_LIST" not in os.environ:
        return "no GPU here; VITADAPTER_CUDA=1 or TORCH_CUDA_ARCH_LIST builds them all the same"
    toolkit = cuda_toolkit()
    if wanted == "1" and isinstance(toolkit, str):
        raise SystemExit(f"vitadapter: VITADAPTER_CUDA=1, but {toolkit}")
    return toolkit


def cuda_architectures(toolkit: CudaToolkit) -> str:
    """What ``TORCH_CUDA_ARCH_LIST`` says, else the GPUs here, else all common ones."""
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return os.environ["TORCH_CUDA_ARCH_LIST"]
    here = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    if here:
        return ";".join(f"{major}.{minor}" for major, minor in sorted(here)) + "+PTX"
    known = re.findall(r"compute_(\d+)", toolkit.nvcc("--list-gpu-arch"))
    return ";".join(a for a in CUDA_ARCHITECTURES if a.replace(".", "") in known) + "+PTX"


def openmp_flags() -> list[str]:
    """Flags that let ``at::parallel_for`` use PyTorch's own threads.

    ATen's parallel loops are templates: compiled without OpenMP they silently run on one thread.
    Nothing is linked, so the loader takes the OpenMP runtime that PyTorch has already loaded.
    """
    uses_openmp = "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()
    return ["-fopenmp"] if uses_openmp else []


def operator_extension(cuda: CudaToolkit | str) -> Extension:
    """The shared library ``vitadapter._C`` with every kernel that this machine can compile."""
    sources = sorted(str(path) for path in Path("kernels").rglob("*.cpp"))
    arguments = {"cxx": ["-O3", "-g0", f"-DPy_LIMITED_API={PYTHON_ABI[0]}", *openmp_flags()]}
    include, libraries, architectures = [], [], ""
    # C++ programs load the library without Python. The functions of Python that it names must then
    # not be looked up before they are called, as conda's linker flags demand.
    link = ["-Wl,-z,lazy"] if sys.platform == "linux" else []
    if isinstance(cuda, CudaToolkit):
        sources += sorted(str(path) for path in Path("kernels").rglob("*_cuda.cu"))
        arguments["nvcc"] = ["-O3"]
        include = [str(path) for path in cuda.include]
        libraries = ["c10_cuda"]
        # By its path: pip's packages have no libcudart.so that -lcudart would find.
        link.append(str(cuda.runtime))
        architectures = os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_architectures(cuda)
        cpp_extension.CUDA_HOME = str(cuda.home)
    else:
        sources = [path for path in sources if not path.endswith("_cuda.cpp")]
    headers = [path for ending in ("h", "cuh") for path in Path("kernels").rglob(f"*.{ending}")]
    return CppExtension(
        "vitadapter._C",
        sources,
        include_dirs=include,
        define_macros=[("VITADAPTER_CUDA_ARCHITECTURES", f'"{architectures}"')],
        libraries=libraries,
        extra_compile_args=arguments,
        extra_link_args=link,
        depends=sorted(str(path) for path in headers),
        py_limited_api=True,
    )


class BuildOperators(BuildExtension):
    """Says what is built, and keeps the object files so that a second build is incremental."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Editable installs would use a fresh temporary folder each time.
        self.build_temp = "build/operators"

    def run(self) -> None:
        if isinstance(cuda, CudaToolkit):
            kinds = (
                f"CPU and CUDA (nvcc {cuda.version} in {cuda.home}, architectures "
                f"{os.environ['TORCH_CUDA_ARCH_LIST']})"
            )
        else:
            kinds = f"CPU, not for CUDA ({cuda}),"
        print(
            f"vitadapter: building the C++ operators for {kinds} against torch {torch.__version__}",
            flush=True,
        )
        super().run()


class BuildPython(build_py):
    """Says so where the operators are not compiled; ``BuildOperators`` does not run then."""

    def run(self) -> None:
        if not_compiled is not None:
            print(
                f"vitadapter: not building the C++ operators: {not_compiled}. The slower PyTorch "
                "implementation will serve in their place.",
                flush=True,
            )
        super().run()


def packages() -> list[str]:
    """The package itself and the parts that lie elsewhere."""
    found = find_packages(include=["vitadapter", "vitadapter.*"])
    for package, folder in MAPPED_PACKAGES.items():
        inside = find_namespace_packages(folder, exclude=["*__pycache__"])
        found += [package, *(f"{package}.{name}" for name in inside)]
    return sorted(set(found))


not_compiled = why_not_compiled()
cuda = cuda_or_why_not() if not_compiled is None else not_compiled

setup(
    packages=packages(),
    package_dir=MAPPED_PACKAGES,
    ext_modules=[operator_extension(cuda)] if not_compiled is None else [],
    cmdclass={"build_ext": BuildOperators, "build_py": BuildPython},
    options={"bdist_wheel": {"py_limited_api": PYTHON_ABI[1]}} if not_compiled is None else {},
)
