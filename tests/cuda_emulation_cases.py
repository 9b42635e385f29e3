"""Builds the CUDA kernels for the emulated device, and runs them there.

``tests/cuda_emulation`` gives CUDA a meaning on CPU; this is the Python side of its driver.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.cpp_extension import include_paths

from vitadapter.layers import ms_deform_attn_reference

__all__ = ["FOLDER", "SANITIZERS", "Case", "EmulationError", "build", "reference_gradients", "run"]

FOLDER = Path(__file__).parent / "cuda_emulation"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SANITIZERS = (
    "-O0",
    "-fsanitize=address,undefined,float-cast-overflow",
    # Slow to compile, and seen by AddressSanitizer anyway.
    "-fno-sanitize=null,object-size,vptr",
    "-fno-sanitize-recover=all",
)


class EmulationError(Exception):
    """The emulated device refused what a kernel did."""


def _compile(source: Path, target: Path, include: Path, flags: Sequence[str]) -> None:
    command = ["g++", "-std=c++20", "-O1", "-Wno-unknown-pragmas", "-fno-strict-aliasing", *flags]
    command += [f"-I{FOLDER / 'include'}", f"-I{include}"]
    command += [f"-I{path}" for path in include_paths()]
    command += ["-x", "c++", "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def build(kernels: Path, float_only: bool = False, flags: Sequence[str] = ()) -> Path:
    """Compile the kernels in a folder with the C++ compiler; kept until a source changes.

    Args:
        kernels: A folder such as ``kernels/ms_deform_attn``.
        float_only: Whether to compile the kernels of float32 only, which is quicker.
        flags: More flags for the compiler.

    Returns:
        The executable.
    """
    sources = sorted(kernels.glob("*_cuda.cu"))
    if float_only:
        sources = [path for path in sources if "grad_value_rows" in path.name]
        flags = [*flags, "-DEMULATED_DTYPES=1", "-include", str(kernels / "dispatch_cuda.cuh")]
    else:
        flags = [*flags, "-DEMULATED_DTYPES=4"]
    sources += sorted(FOLDER.glob("*.cpp"))
    digest = hashlib.sha256(f"{torch.__version__} {flags}".encode())
    for path in sorted([*kernels.glob("*_cuda.*"), *FOLDER.rglob("*.*"), Path(__file__)]):
        digest.update(path.read_bytes())
    cache = Path(tempfile.gettempdir(), f"vitadapter_cuda_emulation_{os.getuid()}")
    executable = cache / digest.hexdigest()[:16]
    if not executable.is_file():
        with tempfile.TemporaryDirectory() as folder:
            objects = [Path(folder, f"{source.stem}.o") for source in sources]
            for source, target in zip(sources, objects, strict=True):
                _compile(source, target, kernels, flags)
            linked = Path(folder, "linked")
            sanitizers = [flag for flag in flags if "-fsanitize=" in flag]
            subprocess.run(["g++", *sanitizers, *objects, "-o", linked], check=True)
            cache.mkdir(exist_ok=True)
            shutil.copy2(linked, executable)
    return executable


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


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _request(case: Case, launch: int, descending: bool, atomics: bool) -> bytes:
    sizes = [launch, case.fused, DTYPES.index(case.dtype), descending]
    sizes += [*case.value.shape, case.queries, len(case.shapes), case.points]
    sizes += [case.reference_images, case.reference_levels, atomics]
    sizes += [size for shape in case.shapes for size in shape]
    arrays = list(case.taps)
    if launch > 0:
        arrays.append(case.grad_output)
    if launch < 2:
        arrays.append(case.value)
    return b"".join(map(_bytes, [torch.tensor(sizes), *arrays]))


def _answer_like(case: Case, launch: int, atomics: bool) -> list[Tensor]:
    coordinate = case.taps[0].dtype
    grad_value = case.value.to(coordinate)
    if launch == 0:
        return [case.grad_output]
    if launch == 2:
        return [grad_value]
    # Offsets and logits: the caller sums up the gradients of the reference points.
    taps = [case.taps[1].to(coordinate), case.taps[2]] if case.fused else case.taps
    return [grad_value, *taps] if atomics else taps


def run(
    executable: Path,
    case: Case,
    launch: str,
    descending: bool = False,
    atomics: bool = True,
) -> list[Tensor]:
    """Launch a kernel on the emulated device.

    Args:
        executable: From :func:`build`.
        case: The inputs.
        launch: "forward", "backward" or "grad_value_rows".
        descending: Whether the threads of a block run from the last to the first.
        atomics: Whether "backward" computes the gradient of the value.

    Returns:
        What the kernel writes: the output, or the gradients (of the value if ``atomics``, of the
        locations and weights; or of the offsets and logits).

    Raises:
        EmulationError: if the kernel did what a GPU does not define.
    """
    number = ("forward", "backward", "grad_value_rows").index(launch)
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request"), Path(folder, "answer")
        request.write_bytes(_request(case, number, descending, atomics))
        done = subprocess.run(
            [executable, request, answer], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise EmulationError(done.stderr[:2000])
        data = bytearray(answer.read_bytes())
    results, first = [], 0
    for like in _answer_like(case, number, atomics):
        results.append(
            torch.frombuffer(data, dtype=like.dtype, count=like.numel(), offset=first).reshape(
                like.shape
            )
        )
        first += like.numel() * like.element_size()
    assert first == len(data)
    return results


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
