"""Exported files and the runtimes that compute them."""

import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram

from .description import KEY, Description

__all__ = ["FORMATS", "Runtime", "format_of", "open_file"]


class Runtime(Protocol):
    """A format: how its files are written, read and computed."""

    suffix: str

    def write(self, program: ExportedProgram, description: Description, file: Path) -> None:
        """Writes a program of `program_of`."""

    def read(self, file: Path) -> tuple["Compute", Description]:
        """Reads a file; raises ValueError if it is not one that `write` has written."""


class Compute(Protocol):
    """Computes the outputs of images."""

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """Maps pixels (B, 3, H, W), uint8, of any size to the outputs of the graph."""


class Torch:
    """The program itself; it is read by `import vitadapter.ops` and `torch.export.load`."""

    suffix = ".pt2"

    def write(self, program: ExportedProgram, description: Description, file: Path) -> None:
        """See `Runtime`."""
        # A file object, because torch.export.save insists on the suffix .pt2.
        with file.open("wb") as opened:
            torch.export.save(program, opened, extra_files={KEY: description.to_json()})

    def read(self, file: Path) -> tuple[Compute, Description]:
        """See `Runtime`."""
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

        def compute(images: Tensor) -> Sequence[Tensor]:
            _check_images(images, description)
            height, width = images.shape[-2:]
            bottom, right = -height % description.multiple, -width % description.multiple
            padded = F.pad(images, (0, right, 0, bottom))
            with torch.no_grad():
                outputs = program(padded, torch.tensor([height, width]))
            return [
                output[..., :height, :width] if name == "sem_seg" else output
                for name, output in zip(description.outputs, outputs, strict=True)
            ]

        return compute, description


class Onnx:
    """ONNX; its only input are `images` of any size.

    Args:
        tensorrt_plugin: whether deformable attention is TensorRT's plugin, which ONNX Runtime does
            not have.
    """

    suffix = ".onnx"

    def __init__(self, tensorrt_plugin: bool = False) -> None:
        self.tensorrt_plugin = tensorrt_plugin

    def write(self, program: ExportedProgram, description: Description, file: Path) -> None:
        """See `Runtime`."""
        onnx = _needed("onnx")
        _needed("onnxscript")
        from .onnx_graph import cropped, to_onnx, with_padding

        model = to_onnx(
            program,
            ["images", "size"],
            description.outputs,
            tensorrt_plugin=self.tensorrt_plugin,
        )
        model = with_padding(model, description.multiple)
        if "sem_seg" in description.outputs:
            model = cropped(model, "sem_seg")
        onnx.helper.set_model_props(model, {KEY: description.to_json()})
        onnx.save(model, str(file))

    def read(self, file: Path) -> tuple[Compute, Description]:
        """See `Runtime`."""
        ort = _needed("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # Not TensorRT, which would build an engine for each size of images.
        wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        providers = [name for name in wanted if name in ort.get_available_providers()]
        try:
            session = ort.InferenceSession(str(file), options, providers=providers)
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            raise ValueError(f"ONNX Runtime cannot read it: {error}") from error
        properties = session.get_modelmeta().custom_metadata_map
        if KEY not in properties:
            raise ValueError("it has no description")
        description = Description.from_json(properties[KEY])

        def compute(images: Tensor) -> Sequence[Tensor]:
            _check_images(images, description)
            outputs = session.run(description.outputs, {"images": images.numpy()})
            return [torch.from_numpy(output) for output in outputs]

        return compute, description


FORMATS: dict[str, Runtime] = {
    "torch": Torch(),
    "onnx": Onnx(),
    "tensorrt": Onnx(tensorrt_plugin=True),
}


def format_of(name: str) -> Runtime:
    """Returns a format by its name; raises ValueError for an unknown one."""
    if name not in FORMATS:
        raise ValueError(f"the format must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]


def open_file(file: str | Path) -> tuple[Compute, Description]:
    """Opens a file that `export` has written.

    Raises:
        ValueError: it is damaged, another file, or of a newer version; or its runtime is missing.
        FileNotFoundError: there is no such file.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    formats = {each.suffix: each for each in reversed(FORMATS.values())}
    if path.suffix not in formats:
        raise ValueError(f"an exported file ends in {' or '.join(formats)}, got {path}")
    try:
        return formats[path.suffix].read(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used as an exported file: {error}") from error


def _check_images(images: Tensor, description: Description) -> None:
    """Raises ValueError unless the program takes these images."""
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


def _needed(package: str) -> ModuleType:
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(
            f"this format needs the package {package}: pip install 'vitadapter[export]'"
        ) from error
