"""OpenVINO's intermediate representation, and its runtime on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..description import KEY, Description
from .format import Compute, named_inputs, needed_package
from .onnx import EXTERNAL, MAX_BYTES, in_precision, onnx_model, save_onnx

__all__ = ["OpenVino"]


def _save(model: Any, description: Description, file: Path) -> None:
    """Writes an `onnx.ModelProto` as both files of OpenVINO."""
    openvino = needed_package("openvino")
    onnx_file = file.with_suffix(".onnx")
    try:
        save_onnx(model, onnx_file)
        converted = openvino.Core().read_model(onnx_file)
        converted.set_rt_info(description.to_json(), KEY)
        openvino.save_model(converted, file, compress_to_fp16=False)
    finally:
        for suffix in (".onnx", EXTERNAL):
            file.with_suffix(suffix).unlink(missing_ok=True)


class OpenVino:
    """A graph in an `.xml` file and its weights in a `.bin` file beside it.

    The graph is that of ONNX.
    """

    suffix = ".xml"
    max_int8_bytes = MAX_BYTES
    companions: Sequence[str] = (".bin",)
    precisions: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16, torch.int8)

    def write(self, program: ExportedProgram, description: Description, file: Path) -> None:
        """See `Format`."""
        needed_package("openvino")
        _save(in_precision(onnx_model(program, description), description), description, file)

    def write_int8(
        self,
        program: ExportedProgram,
        description: Description,
        file: Path,
        images: Sequence[Tensor],
    ) -> None:
        """See `Quantizing`."""
        needed_package("openvino")
        model = onnx_model(program, description)
        from .onnx_precision import with_int8_products

        calibration = [named_inputs(image, None, description) for image in images]
        _save(with_int8_products(model, calibration), description, file)

    def read(self, file: Path) -> tuple[Compute, Description]:
        """See `Format`."""
        openvino = needed_package("openvino")
        if not file.with_suffix(".bin").is_file():
            raise ValueError(f"its weights, {file.with_suffix('.bin')}, are missing")
        core = openvino.Core()
        try:
            model = core.read_model(file)
        except Exception as error:  # OpenVINO's errors are RuntimeErrors of many kinds
            raise ValueError(f"OpenVINO cannot read it: {error}") from error
        if not model.has_rt_info(KEY):
            raise ValueError("it has no description")
        description = Description.from_json(model.get_rt_info(KEY).astype(str))
        settings = {
            # What is in another precision says so. Otherwise, some processors would compute the
            # rest in bfloat16, in which coordinates above 256 are no longer exact.
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        request = core.compile_model(model, "CPU", settings).create_infer_request()

        def compute(images: Tensor, output_size: tuple[int, int] | None = None) -> Sequence[Tensor]:
            outputs = request.infer(named_inputs(images, output_size, description))
            return [torch.from_numpy(outputs[name].copy()) for name in description.outputs]

        return compute, description
