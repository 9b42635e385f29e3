"""Builds the CUDA operators for the emulated device, and the cases that they are tested with.

``cuda_emulation`` gives CUDA a meaning on CPU. The library made here holds the operators'
own host code and kernels, registered in another namespace, where CPU tensors stand in for those of
the device.
"""

import ctypes
import fcntl
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch._ops import _OpNamespace
from torch.utils.cpp_extension import include_paths, library_paths

from vitadapter.ops import ms_deform_attn_reference

__all__ = [
    "FOLDER",
    "PYRAMID",
    "SANITIZERS",
    "Case",
    "assert_close",
    "build",
    "check",
    "descending",
    "deterministic",
    "gradients",
    "load",
    "reference_gradients",
]

FOLDER = Path(__file__).parent / "cuda_emulation"
# Of what `gradients` returns.
_NAMES = ("output", "grad_value", "first tap argument", "second", "third")
PYRAMID = ((5, 7), (3, 2), (1, 3))
SANITIZERS = (
    "-O1",
    "-fsanitize=address,undefined,float-cast-overflow",
    # Slow to compile, and seen by AddressSanitizer anyway.
    "-fno-sanitize=null,object-size,vptr",
    "-fno-sanitize-recover=all",
)


# --- building -----------------------------------------------------------------------------------


def _namespace(float_only: bool) -> str:
    return "vitadapter_emulated_float32" if float_only else "vitadapter_emulated"


@dataclass(frozen=True)
class _Compiler:
    """Compiles single files, unless an object of the same sources and flags is kept."""

    kernels: Path
    flags: tuple[str, ...]
    cache: Path

    def __call__(self, source: Path) -> Path:
        command = ["g++", "-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique"]
        command += ["-fno-strict-aliasing", "-Wno-unknown-pragmas", *self.flags]
        digest = hashlib.sha256(f"{torch.__version__} {command}".encode())
        for path in (source, *self._read_by(source)):
            digest.update(path.read_bytes())
        target = self.cache / f"{source.stem}.{digest.hexdigest()[:16]}.o"
        if not target.is_file():
            command += [f"-I{path}" for path in (FOLDER / "include", self.kernels)]
            command += [f"-I{path}" for path in include_paths()]
            with tempfile.TemporaryDirectory(dir=self.cache) as folder:
                made = Path(folder, "made.o")
                command += ["-x", "c++", "-c", str(source), "-o", str(made)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr[-4000:]
                made.rename(target)
        return target

    def _read_by(self, source: Path) -> list[Path]:
        """Our headers; device code is in .cuh files, which host code does not include."""
        endings = ["h", "cuh"] if source.suffix == ".cu" or source.parent == FOLDER else ["h"]
        ours = [path for ending in endings for path in self.kernels.glob(f"*.{ending}")]
        return sorted([*ours, *FOLDER.rglob("*.h")])


def build(kernels: Path, float_only: bool = False, flags: Sequence[str] = ()) -> Path:
    """Compile the operators in a folder with the C++ compiler; kept until a source changes.

    Args:
        kernels: A folder such as ``kernels/ms_deform_attn``, or a changed copy of it.
        float_only: Whether to compile for float32 only, which is quicker.
        flags: More flags for the compiler.

    Returns:
        The shared library, for :func:`load`.
    """
    cache = Path(tempfile.gettempdir(), f"vitadapter_cuda_emulation_{os.getuid()}")
    cache.mkdir(exist_ok=True)
    sources = sorted(kernels.glob("*_cuda.cu"))
    flags = (*flags, f"-DEMULATED_NAMESPACE={_namespace(float_only)}")
    if float_only:
        # What `float_launches.cpp` has for float32 alone.
        others = ("forward_cuda.cu", "backward_cuda.cu")
        sources = [path for path in sources if not path.name.endswith(others)]
        sources.append(FOLDER / "float_launches.cpp")
        flags = (*flags, "-DEMULATED_FLOAT_ONLY")
    sources += sorted(path for path in kernels.glob("*.cpp") if "cpu" not in path.name)
    sources.append(FOLDER / "emulation.cpp")
    with (cache / "lock").open("w") as lock, ThreadPoolExecutor() as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process waits for what this one makes
        objects = list(pool.map(_Compiler(kernels, flags, cache), sources))
    command = ["g++", "-shared", *(flag for flag in flags if "-fsanitize=" in flag)]
    command += [*map(str, objects), *(f"-L{path}" for path in library_paths())]
    command += ["-lc10", "-ltorch_cpu"]
    library = cache / f"{hashlib.sha256(' '.join(command).encode()).hexdigest()[:16]}.so"
    if not library.is_file():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            linked = Path(folder, "linked.so")
            subprocess.run([*command, "-o", str(linked)], check=True)
            linked.rename(library)
    return library


def load(library: Path, float_only: bool = False) -> _OpNamespace:
    """The operators of a build, to be called with CPU tensors; one build of either kind a process.

    The emulated device answers what a GPU does not define with a ``RuntimeError``.
    """
    torch.ops.load_library(str(library))
    return getattr(torch.ops, _namespace(float_only))


@contextmanager
def descending(library: Path) -> Iterator[None]:
    """Run the threads of each block from the last to the first."""
    choose = ctypes.CDLL(str(library)).emulation_set_descending
    choose(True)
    try:
        yield
    finally:
        choose(False)


@contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic algorithms; memory that nobody has written to holds NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# --- cases --------------------------------------------------------------------------------------


@dataclass
class Case:
    """Inputs of either form of the operator; about a third of the taps lie outside."""

    dtype: torch.dtype = torch.float32
    images: int = 2
    heads: int = 2
    head_dim: int = 32
    queries: int = 5
    points: int = 4
    shapes: Sequence[tuple[int, int]] = ((5, 7),)
    fused: bool = False
    reference_images: int = 1
    reference_levels: int = 1
    reach: float = 2.0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64)

        def uniform(*size: int) -> Tensor:
            return torch.rand(size, generator=generator, dtype=torch.float64)

        coordinate = torch.float64 if self.dtype == torch.float64 else torch.float32
        taps = (self.images, self.queries, self.heads, len(self.shapes), self.points)
        tokens = sum(height * width for height, width in self.shapes)
        self.value = normal(self.images, tokens, self.heads, self.head_dim).to(self.dtype)
        self.grad_output = normal(self.images, self.queries, self.heads * self.head_dim).to(
            self.dtype
        )
        if self.fused:
            points = (self.reference_images, self.queries, self.reference_levels, 2)
            self.taps = [
                uniform(*points).to(coordinate),
                (self.reach * normal(*taps, 2)).to(self.dtype),
                normal(*taps).to(self.dtype),
            ]
        else:
            # A sixth of each axis outside on either side.
            self.taps = [
                (uniform(*taps, 2) * 1.5 - 0.25).to(coordinate),
                normal(*taps).to(coordinate),
            ]


def gradients(
    operators: _OpNamespace, case: Case, device: torch.device | str = "cpu"
) -> list[Tensor]:
    """Output and gradients (value, then the taps) by the operators of a namespace, on CPU."""
    forward, backward = operators.ms_deform_attn, operators.ms_deform_attn_backward
    if case.fused:
        forward, backward = operators.ms_deform_attn_fused, operators.ms_deform_attn_fused_backward
    value, grad_output = case.value.to(device), case.grad_output.to(device)
    taps = [tensor.to(device) for tensor in case.taps]
    flat = [size for shape in case.shapes for size in shape]
    output = forward(value, flat, *taps)
    grads = backward(grad_output, value, flat, *taps)
    return [tensor.cpu() for tensor in (output, *grads)]


def _sampled(case: Case, taps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Locations and weights of a case in float64."""
    if not case.fused:
        return taps[0], taps[1]
    references, offsets, logits = taps
    sizes = torch.tensor([[width, height] for height, width in case.shapes], dtype=torch.float64)
    locations = references[:, :, None, :, None] + offsets / sizes[:, None]
    weights = logits.flatten(-2).softmax(-1).reshape(logits.shape)
    return locations, weights


def reference_gradients(case: Case) -> list[Tensor]:
    """Output and gradients (value, then the taps) by PyTorch in float64."""
    leaves = [tensor.double().requires_grad_() for tensor in (case.value, *case.taps)]
    locations, weights = _sampled(case, leaves[1:])
    output = ms_deform_attn_reference(leaves[0], list(case.shapes), locations, weights)
    return [output.detach(), *torch.autograd.grad(output, leaves, case.grad_output.double())]


def assert_close(got: Tensor, expected: Tensor, name: str) -> None:
    """Up to the rounding of the dtype; `expected` is float64."""
    rounding = torch.finfo(got.dtype).eps
    scale = max(expected.abs().max().item(), 1.0)
    tolerance = 1e-12 if got.dtype == torch.float64 else max(5e-6, rounding)
    torch.testing.assert_close(
        got.double(),
        expected,
        rtol=tolerance,
        atol=tolerance * scale,
        msg=lambda message: f"{name}: {message}",
    )


def check(emulated: _OpNamespace, case: Case, expected: list[Tensor] | None = None) -> None:
    """Forward and both backward passes equal the reference."""
    expected = expected or reference_gradients(case)
    got = gradients(emulated, case)
    with deterministic():
        by_rows = gradients(emulated, case)
    for name, *tensors in zip(_NAMES, got, by_rows, expected, strict=False):
        assert_close(tensors[0], tensors[2], name)
        assert_close(tensors[1], tensors[2], f"{name}, deterministic")
    assert all(map(torch.equal, got[2:], by_rows[2:])), "gradients of taps without grad_value"
