"""Programs of `torch.export` in `.pt2` files."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.export import ExportedProgram

from ..description import KEY, Description
from .format import Compute, padded

__all__ = ["Torch"]


class Torch:
    """The program itself; it is read by `import vitadapter.ops` and `torch.export.load`."""

    suffix = ".pt2"
    companions: Sequence[str] = ()
    precisions: Sequence[torch.dtype] = (torch.float32,)

    def write(self, program: ExportedProgram, description: Description, file: Path) -> None:
        """See `Format`."""
        # A file object, because torch.export.save insists on the suffix .pt2.
        with file.open("wb") as opened:
            torch.export.save(program, opened, extra_files={KEY: description.to_json()})

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
