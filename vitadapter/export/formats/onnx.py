"""ONNX files, and ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..description import KEY, Description
from .format import Compute, check_images, needed_package

__all__ = ["Onnx"]


class Onnx:
    """ONNX; its only input are `images` of any size.

    Args:
        tensorrt_plugin: whether deformable attention is TensorRT's plugin, which ONNX Runtime does
            not have.
    """

    suffix = ".onnx"
    # A message of protobuf has less than 2 GiB; the graph takes some of it.
    max_bytes: int | None = 2**31 - 2**24

    def __init__(self, tensorrt_plugin: bool = False) -> None:
        self.tensorrt_plugin = tensorrt_plugin

    def write(self, program: ExportedProgram, description: Description, file: Path) -> None:
        """See `Format`."""
        onnx = needed_package("onnx")
        needed_package("onnxscript")
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

        def compute(images: Tensor) -> Sequence[Tensor]:
            check_images(images, description)
            outputs = session.run(description.outputs, {"images": images.numpy()})
            return [torch.from_numpy(output) for output in outputs]

        return compute, description
