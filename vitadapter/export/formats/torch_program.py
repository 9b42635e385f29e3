"""Programs of `torch.export` in `.pt2` files."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.export import ExportedProgram

from ..description import KEY, Description
from ..half_programs import with_half_products
from ..precision import precision_of
from .format import Compute, padded

__all__ = ["Torch"]


class Torch:
    """The program itself; it is read by `import vitadapter.ops` and `torch.export.load`."""

    suffix = ".pt2"
    companions: Sequence[str] = ()
    precisions: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16)

    def write(self, program: ExportedProgram, description: Description, file: Path) -> None:
        """See `Format`."""
        precision = precision_of(description.precision)
        if precision != torch.float32:
            with_half_products(program, precision)
        example, program.example_inputs = program.example_inputs, None  # large, and all zeros
        try:
            # A file object, because torch.export.save insists on the suffix .pt2.
            with file.open("wb") as opened:
                torch.export.save(program, opened, extra_files={KEY: description.to_json()})
        finally:
            program.example_inputs = example

    def read(self, file: Path) -> tuple[Compute, Description]:
        """See `Format`."""
        import vitadapter.ops  # noqa: F401  the operator

        extra = {KEY: ""}
        try:
            with file.open("rb") as opened:
                program = torch.export.load(opened, extra_files=extra).module()
        except Exception as error:  # whatever the many parts of an archive may raise
            raise ValueError(f"torch.export.load cannot read it: {error!r}") from error
        if not extra[KEY]:
            raise ValueError("it has no description")
        description = Description.from_json(extra[KEY])
        return padded(program, description), description
