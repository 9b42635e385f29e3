"""ONNX graphs whose matrix products and convolutions compute in half precision or int8.

Everything between them stays in float32: the normalisation of pixels and of layers, softmax,
sampling locations, the decoding of boxes, and suppression.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ..graphs.full_size import MaskPasting
from .format import needed_package

__all__ = ["Inputs", "with_half_products", "with_int8_products"]

Inputs = dict[str, np.ndarray]
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Nodes whose result is no feature any more but probabilities, places, sizes and choices; with the
# inputs for which this is so, if not for all.
_ENDS: dict[str, Sequence[int] | None] = {
    "GridSample": [1],
    "NonMaxSuppression": None,
    "NonZero": None,
    "RoiAlign": [1, 2],
    "Shape": None,
    "Sigmoid": None,
    "Softmax": None,
    "TopK": None,
}


def with_half_products(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """Makes the products of a float32 model compute in half precision; changed in place.

    Args:
        model: in float32.
        kind: `TensorProto.FLOAT16` or `TensorProto.BFLOAT16`.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    halved: dict[str, str] = {}  # names of tensors in half precision by those in float32
    nodes: list[NodeProto] = []

    def half(name: str) -> str:
        if name and name not in halved:
            halved[name] = f"{name}_half"
            if name in weights:
                values = numpy_helper.to_array(weights[name]).astype(dtype)
                graph.initializer.append(numpy_helper.from_array(values, halved[name]))
            else:
                nodes.append(helper.make_node("Cast", [name], [halved[name]], to=kind))
        return halved.get(name, name)

    for node in graph.node:
        if node.op_type not in _PRODUCTS or _is_pasting(node):
            nodes.append(node)
            continue
        node.input[:] = [half(name) for name in node.input]
        (output,) = node.output
        node.output[0] = f"{output}_half_product"
        nodes.append(node)
        nodes.append(helper.make_node("Cast", node.output, [output], to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return model


def with_int8_products(model: onnx.ModelProto, calibration: Sequence[Inputs]) -> onnx.ModelProto:
    """Makes the products of a float32 model compute in int8, by ONNX Runtime's static quantization.

    Weights have a scale for each output channel. The first products, which read pixels, the last
    ones, which make predictions, and those of sampling locations and attention weights stay in
    float32, as do products of two features.

    Args:
        model: in float32.
        calibration: what numbers occur is learned of these inputs.
    """
    quantization = needed_package("onnxruntime.quantization")
    pre_process = needed_package("onnxruntime.quantization.shape_inference").quant_pre_process
    logger = logging.getLogger()
    level = logger.level
    with TemporaryDirectory(prefix="vitadapter-int8-") as folder:
        given, folded, quantized = (str(Path(folder, f"{i}.onnx")) for i in range(3))
        onnx.save(model, given)
        try:
            logger.setLevel(logging.ERROR)  # both advise what has been done
            pre_process(given, folded, skip_symbolic_shape=True)
            quantization.quantize_static(
                folded,
                quantized,
                _Reader(calibration),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_PRODUCTS),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=_excluded(onnx.load(folded)),
                extra_options={"MatMulConstBOnly": True},
            )
        finally:
            logger.setLevel(level)
        return onnx.load(quantized)


def _is_pasting(node: NodeProto) -> bool:
    """Whether this is a product of `MaskPasting`."""
    return any(
        prop.key.endswith("class_hierarchy") and MaskPasting.__name__ in prop.value
        for prop in node.metadata_props
    )


class _Reader:
    """What ONNX Runtime reads inputs of."""

    def __init__(self, calibration: Sequence[Inputs]) -> None:
        self._left: Iterator[Inputs] = iter(calibration)

    def get_next(self) -> Inputs | None:
        return next(self._left, None)


def _excluded(model: onnx.ModelProto) -> list[str]:
    """Returns the names of the products that stay in float32."""
    nodes = list(model.graph.node)
    readers: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in nodes:
        for index, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, index))
    weights = {tensor.name for tensor in model.graph.initializer}
    makers = {name: node for node in nodes for name in node.output}
    products = [node for node in nodes if node.op_type in _PRODUCTS]
    return [
        node.name
        for node in products
        if node.input[1] not in weights
        or not _before(node, makers)
        or not _reaches_product(node, readers)
    ]


def _before(node: NodeProto, makers: dict[str, NodeProto]) -> bool:
    """Whether there is a product before this one."""
    waiting, seen = [node.input[0]], set[str]()
    while waiting:
        maker = makers.get(waiting.pop())
        if maker is None or maker.output[0] in seen:
            continue
        seen.add(maker.output[0])
        if maker.op_type in _PRODUCTS:
            return True
        waiting.extend(maker.input)
    return False


def _reaches_product(node: NodeProto, readers: dict[str, list[tuple[NodeProto, int]]]) -> bool:
    """Whether the result of a product is a feature that another product reads."""
    waiting, seen = list(node.output), set[str]()
    while waiting:
        for reader, index in readers.get(waiting.pop(), []):
            if reader.op_type in _PRODUCTS:
                return True
            ends = _ENDS.get(reader.op_type, [])
            if reader.output[0] in seen or ends is None or index in ends:
                continue
            seen.add(reader.output[0])
            waiting.extend(reader.output)
    return False
