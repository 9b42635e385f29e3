"""ONNX files, and ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..description import KEY, Description
from ..precision import precision_of
from .format import Compute, named_inputs, needed_package

__all__ = ["EXTERNAL", "MAX_BYTES", "Onnx", "in_precision", "onnx_model", "save_onnx"]

# A message of protobuf has less than 2 GiB; the graph takes some of it.
MAX_BYTES = 2**31 - 2**24
EXTERNAL = ".onnx.data"
"""Suffix of the weights of a model that one file cannot hold."""


def onnx_model(
    program: ExportedProgram, description: Description, *, tensorrt_plugin: bool = False
) -> Any:
    """Returns a program as an `onnx.ModelProto` in float32 that takes images of any size.

    Args:
        program, description: see `Format.write`.
        tensorrt_plugin: see `Onnx`.
    """
    for package in ("onnx", "onnxscript"):
        needed_package(package)
    from .onnx_graph import cropped, to_onnx, with_padding

    inputs, outputs = ["images", "size"], description.outputs
    if description.full_size:
        inputs.append("output_size")
    model = to_onnx(program, inputs, outputs, tensorrt_plugin=tensorrt_plugin)
    model = with_padding(model, description.multiple)
    if "sem_seg" in outputs and not description.full_size:
        return cropped(model, "sem_seg")
    return model


def in_precision(model: Any, description: Description) -> Any:
    """Makes the products of a model in float32 compute as its description says, except int8."""
    precision = precision_of(description.precision)
    if precision == torch.float32:
        return model
    from onnx import TensorProto

    from .onnx_precision import with_half_products

    kinds = {torch.float16: TensorProto.FLOAT16, torch.bfloat16: TensorProto.BFLOAT16}
    return with_half_products(model, kinds[precision])


def save_onnx(model: Any, file: Path) -> None:
    """Writes an `onnx.ModelProto`, with its weights in a file beside it if they are too large."""
    onnx = needed_package("onnx")
    external = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MAX_BYTES
    location = file.with_suffix(EXTERNAL).name
    onnx.save(model, str(file), save_as_external_data=external, location=location)


def _save(model: Any, description: Description, file: Path) -> None:
    onnx = needed_package("onnx")
    onnx.helper.set_model_props(model, {KEY: description.to_json()})
    save_onnx(model, file)


class Onnx:
    """ONNX; its only input are `images` of any size, or `output_size` too.

    Weights of 2 GiB or more are in a file beside it.

    Args:
        tensorrt_plugin: whether deformable attention is TensorRT's plugin, which ONNX Runtime does
            not have.
    """

    suffix = ".onnx"
    max_int8_bytes = MAX_BYTES
    companions: Sequence[str] = (EXTERNAL,)

    def __init__(self, tensorrt_plugin: bool = False) -> None:
        self.tensorrt_plugin = tensorrt_plugin
        # TensorRT chooses the precision of each layer when it builds an engine.
        others = () if tensorrt_plugin else (torch.float16, torch.int8)
        self.precisions: Sequence[torch.dtype] = (torch.float32, *others)

    def write(self, program: ExportedProgram, description: Description, file: Path) -> None:
        """See `Format`."""
        model = onnx_model(program, description, tensorrt_plugin=self.tensorrt_plugin)
        _save(in_precision(model, description), description, file)

    def write_int8(
        self,
        program: ExportedProgram,
        description: Description,
        file: Path,
        images: Sequence[Tensor],
    ) -> None:
        """See `Quantizing`."""
        model = onnx_model(program, description)
        from .onnx_precision import with_int8_products

        calibration = [named_inputs(image, None, description) for image in images]
        _save(with_int8_products(model, calibration), description, file)

    def read(self, file: Path) -> tuple[Compute, Description]:
        """See `Format`."""
        ort = needed_package("onnxruntime")
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

        def compute(images: Tensor, output_size: tuple[int, int] | None = None) -> Sequence[Tensor]:
            outputs = session.run(
                description.outputs, named_inputs(images, output_size, description)
            )
            return [torch.from_numpy(output) for output in outputs]

        return compute, description
