#!/usr/bin/env python
"""Compiles the CUDA kernels and checks the result against their gates. Needs no GPU.

For each kernel and architecture, prints registers, spills, stack and barriers (from ptxas), and the
widths of loads and stores and the atomics (from the machine code; from PTX if there is no
disassembler). Exits with 1 if a gate is not met. See kernels/README.md.
"""

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch.utils.cpp_extension import include_paths

KERNELS = Path(__file__).resolve().parents[1] / "kernels" / "ms_deform_attn"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
MOST_REGISTERS = 64
NAME = re.compile(
    r"(forward|backward|grad_value_rows)_kernelINS0_6ConfigI(f|d|N3c104HalfE|N3c108BFloat16E)"
    r"Li(\d+)ELi(\d+)ELi(\d+)ELb([01])E"
)
DTYPES = {"f": "float32", "d": "float64", "N3c104HalfE": "float16", "N3c108BFloat16E": "bfloat16"}
PTXAS = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers, used (\d+) barriers",
    re.DOTALL,
)
# An operation with its modifiers, behind an address or a predicate.
SASS_OPERATION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", re.MULTILINE)
PTX_OPERATION = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z]\w*\.[\w.:]+)", re.MULTILINE)
SASS_DOUBLE = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)|MUFU\.\w*64H")
PTX_DOUBLE = re.compile(r"(add|sub|mul|fma|div|rcp|setp|max|min|neg|cvt)\..*f64")


@dataclass
class Kernel:
    """One compiled kernel."""

    architecture: int
    name: str
    stack: int
    spills: int
    registers: int
    barriers: int
    code: str = ""
    operations: Counter[str] = field(default_factory=Counter)

    @property
    def title(self) -> str:
        found = NAME.search(self.name)
        if found is None:
            others = re.search(r"\d((?:write_levels|add_and_norm)\w*?)_kernel", self.name)
            if others is None:
                raise ValueError(f"the kernel {self.name} has no title here")
            return others.group(1)
        kind, dtype, head_dim, levels, points, wide = found.groups()
        fused = "fused " if "7RawTaps" in self.name else ""
        wide = " wide" if wide == "1" else ""
        return f"{fused}{kind} {DTYPES[dtype]} head_dim={head_dim} taps={levels}x{points}{wide}"

    @property
    def is_fast(self) -> bool:
        """Whether it is compiled for one head dimension, so that all lanes use vectors."""
        found = NAME.search(self.name)
        return found is not None and int(found[3]) > 0

    @property
    def is_double(self) -> bool:
        found = NAME.search(self.name)
        return found is not None and found[2] == "d"

    def select(self, pattern: str) -> Counter[str]:
        return Counter({k: n for k, n in self.operations.items() if re.match(pattern, k)})

    @property
    def broken(self) -> Iterator[str]:
        """The gates that this kernel does not pass."""
        if self.spills or self.stack:
            yield f"{self.spills} bytes spilled, {self.stack} bytes of stack"
        if self.registers > MOST_REGISTERS:
            yield f"{self.registers} registers"
        if self.barriers > 1 or self.select(r"BAR|bar\.|barrier"):
            yield "a barrier"
        doubles = [op for op in self.operations if SASS_DOUBLE.match(op) or PTX_DOUBLE.match(op)]
        if doubles and not self.is_double:
            yield f"float64 arithmetic: {doubles}"
        if re.search(r"(div|rem)[._][su]64", self.code):
            yield "a 64-bit division or remainder"
        if not self.is_fast:
            return
        # Only value and grad_output are read through the read-only path.
        narrow = [
            op
            for op in self.select(r"LDG.*CONSTANT|ld\.global\.nc")
            if not re.search(r"\.128|v4\.[ub]32|v2\.[ub]64", op)
        ]
        if narrow:
            yield f"loads of value or grad_output narrower than 128 bits: {narrow}"
        adds = self.select(r"RED|ATOM|red\.|atom\.")
        if self.architecture >= 90 and not self.is_double:
            scalar = [op for op in adds if not re.search(r"F32x4|v4.*f32", op)]
            if scalar:
                yield f"scalar atomics: {scalar}"

    def row(self) -> str:
        """Describes the kernel in one line."""

        def tell(pattern: str) -> str:
            return ", ".join(f"{n} {op}" for op, n in sorted(self.select(pattern).items()))

        memory = tell(r"LDG|STG|LDL|STL|RED|ATOM|ld\.global|st\.global|.*\.local|red\.|atom\.")
        shuffles = sum(self.select(r"SHFL|shfl").values())
        return (
            f"sm_{self.architecture:<4}{self.title:58}{self.registers:4} registers "
            f"{self.spills:3} spilled {self.stack:3} stack {self.barriers:2} barriers "
            f"{shuffles:3} shuffles | {memory}"
        )


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on the path, beside nvcc, or from pip's packages.

    Triton, which comes with PyTorch for CUDA, brings a disassembler along.
    """
    found = shutil.which(name)
    if found:
        return found
    nvcc = Path(shutil.which("nvcc") or "nvcc").resolve()
    folders = [nvcc.parent, Path("/usr/local/cuda/bin")]
    for site in {sysconfig.get_paths()["purelib"], *sys.path}:
        folders += sorted(Path(site or ".", "nvidia").glob("c*/bin"))
        folders.append(Path(site or ".", "triton", "backends", "nvidia", "bin"))
    return next((str(path / name) for path in folders if (path / name).is_file()), None)


def compile_source(nvcc: str, source: Path, architecture: int, folder: Path) -> list[Kernel]:
    """Compile one file, read what ptxas says, and keep its PTX and cubin in `folder`."""
    stem = folder / f"{source.stem}.{architecture}"
    command = [nvcc, "-std=c++20", "-O3", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
    command += [f"-I{path}" for path in (source.parent, *include_paths())]
    keep = folder / stem.name
    keep.mkdir()
    command += ["-cubin", "--keep", f"--keep-dir={keep}", "-o", f"{stem}.cubin", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"cuda_report: {source.name} does not compile:\n{done.stderr[-4000:]}")
    kernels = []
    for name, stack, stores, loads, registers, barriers in PTXAS.findall(done.stderr):
        spills = int(stores) + int(loads)
        kernels.append(
            Kernel(architecture, name, int(stack), spills, int(registers), int(barriers))
        )
    (ptx,) = keep.glob("*.ptx")
    ptx.rename(f"{stem}.ptx")
    return kernels


def read_code(kernels: list[Kernel], stem: Path, disassembler: str | None) -> None:
    """Give each kernel its instructions."""
    if disassembler:
        done = subprocess.run(
            [disassembler, "-c", f"{stem}.cubin"], capture_output=True, text=True, check=True
        )
        parts = re.split(r"^\.text\.(\w+):", done.stdout, flags=re.MULTILINE)
        operation = SASS_OPERATION
    else:
        text = Path(f"{stem}.ptx").read_text()
        parts = re.split(r"^\.(?:visible|weak) \.entry (\w+)\(", text, flags=re.MULTILINE)
        operation = PTX_OPERATION
    code = dict(zip(parts[1::2], parts[2::2], strict=True))
    for kernel in kernels:
        kernel.code = code[kernel.name]
        kernel.operations = Counter(operation.findall(kernel.code))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--arch",
        type=int,
        nargs="+",
        default=ARCHITECTURES,
        metavar="80",
        help="such as 80 for sm_80",
    )
    parser.add_argument("--only", default="", help="compile only files whose name contains this")
    parser.add_argument("--kernels", type=Path, default=KERNELS, help="folder of the sources")
    arguments = parser.parse_args()
    nvcc = find_tool("nvcc")
    if nvcc is None:
        raise SystemExit("cuda_report: no nvcc; install CUDA's toolkit, or nvidia-cuda-nvcc by pip")
    disassembler = find_tool("nvdisasm")
    if disassembler is None:
        print(
            "cuda_report: no nvdisasm (pip install nvidia-cuda-nvdisasm): memory accesses are read "
            "from PTX rather than from machine code"
        )
    sources = [s for s in sorted(arguments.kernels.glob("*_cuda.cu")) if arguments.only in s.name]
    kernels: list[Kernel] = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in arguments.arch:
            for source in sources:
                found = compile_source(nvcc, source, architecture, Path(folder))
                read_code(found, Path(folder, f"{source.stem}.{architecture}"), disassembler)
                for kernel in sorted(found, key=lambda kernel: kernel.title):
                    print(kernel.row(), flush=True)
                kernels += found
    broken = [(kernel, gate) for kernel in kernels for gate in kernel.broken]
    for kernel, gate in broken:
        print(f"BROKEN sm_{kernel.architecture} {kernel.title}: {gate}")
    print(f"{len(kernels)} kernels, {len(broken)} gates broken")
    return 1 if broken or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
