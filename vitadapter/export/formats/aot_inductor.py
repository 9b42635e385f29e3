"""Packages of AOTInductor: a model as machine code, in `.pt2` files."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.export import ExportedProgram

from ..description import KEY, Description
from ..half_programs import with_half_products
from ..precision import precision_of
from ..programs import paused_collection
from .format import Compute, padded

__all__ = ["AotInductor"]


class AotInductor:
    """Machine code for processors like the one that it is written on, with the weights inside.

    A C++ program runs it without Python: see `projects/ViTAdapter/deployment/aot_inductor`.
    """

    suffix = ".pt2"
    companions: Sequence[str] = ()
    precisions: Sequence[torch.dtype] = (torch.float32, torch.bfloat16)

    def write(self, program: ExportedProgram, description: Description, file: Path) -> None:
        """See `Format`."""
        try:
            get_cpp_compiler()
        except RuntimeError as error:
            raise ValueError(
                f"AOTInductor needs a C++ compiler (on Debian: apt install g++): {error}"
            ) from error
        precision = precision_of(description.precision)
        if precision != torch.float32:
            with_half_products(program, precision)
        options = {
            "aot_inductor.metadata": _plain(description) | {KEY: description.to_json()},
            # Otherwise the code would always use as many threads as this process has.
            "cpp.dynamic_threads": True,
            # Where the number of regions is not known, Inductor takes the output of a convolution
            # to be contiguous even if it makes the input channels-last: masks would be wrong.
            "layout_optimization": False,
        }
        try:
            with torch.no_grad(), paused_collection():
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(file), inductor_configs=options
                )
        except Exception as error:  # whatever the many passes of a compiler may raise
            raise ValueError(f"AOTInductor cannot compile the model: {error}") from error

    def read(self, file: Path) -> tuple[Compute, Description]:
        """See `Format`."""
        import vitadapter.ops  # noqa: F401  the operator

        try:
            package = torch._inductor.aoti_load_package(str(file))
            metadata = package.get_metadata()
        except Exception as error:  # whatever the many parts of an archive may raise
            raise ValueError(
                f"torch._inductor.aoti_load_package cannot read it: {error}"
            ) from error
        if KEY not in metadata:
            raise ValueError("it has no description")
        description = Description.from_json(metadata[KEY])
        return padded(package, description), description

    @staticmethod
    def recognises(file: Path) -> bool:
        """Returns whether a `.pt2` file is a package, and not a program of `torch.export`."""
        try:
            with zipfile.ZipFile(file) as archive:
                return any("/data/aotinductor/" in name for name in archive.namelist())
        except zipfile.BadZipFile:
            return False


def _plain(description: Description) -> dict[str, str]:
    """Returns what a detector in C++ needs to know, for programs without a parser of JSON.

    Lists have one entry on each line: a step of resizing as its name and arguments, by blanks.
    """
    steps = [" ".join(map(str, step.values())) for step in description.resize]
    plain = {
        "image_format": description.image_format,
        "multiple": str(description.multiple),
        "outputs": "\n".join(description.outputs),
        "resize": "\n".join(steps),
        "size": " ".join(map(str, description.size or [])),
        "thing_classes": "\n".join(description.thing_classes or []),
    }
    return plain | ({"full_size": "yes"} if description.full_size else {})
