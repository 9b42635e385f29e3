"""What a format of exported files is, and what all of them need."""

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram

from ..description import Description

__all__ = [
    "Compute",
    "Format",
    "Quantizing",
    "checked_size",
    "named_inputs",
    "needed_package",
    "padded",
]


class Format(Protocol):
    """A format: how its files are written, read and computed.

    Attributes:
        suffix: of its files.
        companions: suffixes of further files that may belong to each of them.
        precisions: that it can hold.
    """

    suffix: str
    companions: Sequence[str]
    precisions: Sequence[torch.dtype]

    def write(self, program: ExportedProgram, description: Description, file: Path) -> None:
        """Writes a program of `program_of` in the precision of the description, except int8.

        The program may be changed for it.
        """

    def read(self, file: Path) -> tuple["Compute", Description]:
        """Reads a file; raises ValueError if it is not one that `write` has written."""


@runtime_checkable
class Quantizing(Format, Protocol):
    """A format that can hold int8.

    Attributes:
        max_int8_bytes: that the weights of a model may have to be quantised.
    """

    max_int8_bytes: int

    def write_int8(
        self,
        program: ExportedProgram,
        description: Description,
        file: Path,
        images: Sequence[Tensor],
    ) -> None:
        """Writes a program whose matrix products and convolutions compute in int8.

        Args:
            program, description, file: see `Format.write`.
            images: what numbers occur is learned of these, each (1, 3, H, W) uint8.
        """


class Compute(Protocol):
    """Computes the outputs of images."""

    def __call__(
        self, images: Tensor, output_size: tuple[int, int] | None = None
    ) -> Sequence[Tensor]:
        """Maps pixels to the outputs of the graph.

        Args:
            images: (B, 3, H, W), uint8, of any size.
            output_size: (height, width) of the answers of a file of full size; None for that of the
                images.

        Raises:
            ValueError: the file does not take such images, or no such size.
        """


def checked_size(
    images: Tensor, output_size: tuple[int, int] | None, description: Description
) -> list[Tensor]:
    """Returns the inputs that follow the images and their size: `output_size`, if there is one.

    Args:
        images, output_size: see `Compute`.
        description: of the file.

    Raises:
        ValueError: the file answers in no size but its own, or the size is none.
    """
    if not description.full_size:
        if output_size is not None:
            raise ValueError(
                "only a file of full size has answers of any size (--full-size of vitadapter "
                f"export), got output_size={output_size}"
            )
        return []
    height, width = output_size or images.shape[-2:]
    if height < 1 or width < 1:
        raise ValueError(f"sides of output_size must be at least 1 pixel, got {output_size}")
    return [torch.tensor([height, width])]


def check_images(images: Tensor, description: Description) -> None:
    """Raises ValueError unless the program takes these images.

    Args:
        images: pixels (B, 3, H, W), uint8.
        description: of the file.
    """
    if images.dim() != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(
            f"images must be (B, 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}"
        )
    if len(images) != 1 and not description.takes_batches:
        raise ValueError(f"a detector takes one image at a time, got {len(images)}")
    unit = description.multiple
    padded = [math.ceil(side / unit) * unit for side in images.shape[-2:]]
    if description.size is not None and padded != description.size:
        raise ValueError(
            f"the file takes images that are padded to {description.size} (height, width), got "
            f"{padded} of an image of {list(images.shape[-2:])} pixels"
        )
    if description.size is None and min(padded) < 2 * unit:
        raise ValueError(
            f"the file takes images with sides of more than {unit} pixels, got "
            f"{list(images.shape[-2:])}"
        )


def named_inputs(
    images: Tensor, output_size: tuple[int, int] | None, description: Description
) -> dict[str, np.ndarray]:
    """Returns the inputs of a graph that pads its images, by their names.

    Args:
        images, output_size: see `Compute`.
        description: of the file.

    Raises:
        ValueError: see `Compute`.
    """
    check_images(images, description)
    inputs = [images, *checked_size(images, output_size, description)]
    return {
        name: value.numpy() for name, value in zip(("images", "output_size"), inputs, strict=False)
    }


def padded(program: Callable[..., Sequence[Tensor]], description: Description) -> Compute:
    """Makes a program for padded images take images of any size.

    Args:
        program: maps padded `images` and their `size` to the outputs; see `Graph.normalised`. Of
            full size, it also takes `output_size`.
        description: of the file.
    """

    def compute(images: Tensor, output_size: tuple[int, int] | None = None) -> Sequence[Tensor]:
        check_images(images, description)
        asked = checked_size(images, output_size, description)
        height, width = images.shape[-2:]
        bottom, right = -height % description.multiple, -width % description.multiple
        # Machine code reads the memory as it was laid out in the example.
        pixels = F.pad(images, (0, right, 0, bottom)).contiguous()
        with torch.no_grad():
            outputs = program(pixels, torch.tensor([height, width]), *asked)
        if description.full_size:
            return outputs
        return [
            output[..., :height, :width] if name == "sem_seg" else output
            for name, output in zip(description.outputs, outputs, strict=True)
        ]

    return compute


def needed_package(package: str) -> ModuleType:
    """Imports a package of a runtime; raises ValueError if it is not installed."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(
            f"this format needs the package {package}: pip install 'vitadapter[export]'"
        ) from error
