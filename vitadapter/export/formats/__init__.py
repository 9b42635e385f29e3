"""The formats of exported files: how each is written, read and computed."""

from pathlib import Path

from ..description import Description
from .aot_inductor import AotInductor
from .format import Compute, Format, Quantizing
from .onnx import Onnx
from .openvino import OpenVino
from .torch_program import Torch

__all__ = [
    "FORMATS",
    "AotInductor",
    "Compute",
    "Format",
    "Onnx",
    "OpenVino",
    "Quantizing",
    "Torch",
    "format_of",
    "is_exported",
    "open_file",
]

FORMATS: dict[str, Format] = {
    "torch": Torch(),
    "aoti": AotInductor(),
    "onnx": Onnx(),
    "openvino": OpenVino(),
    "tensorrt": Onnx(tensorrt_plugin=True),
}


def format_of(name: str) -> Format:
    """Returns a format by its name; raises ValueError for an unknown one."""
    if name not in FORMATS:
        raise ValueError(f"the format must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]


def is_exported(name: str | Path) -> bool:
    """Whether what stands in place of weights is, by its name, an exported file."""
    return Path(name).suffix in {each.suffix for each in FORMATS.values()}


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
    format_ = formats[path.suffix]
    if isinstance(format_, Torch) and AotInductor.recognises(path):
        format_ = FORMATS["aoti"]
    try:
        return format_.read(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used as an exported file: {error}") from error
