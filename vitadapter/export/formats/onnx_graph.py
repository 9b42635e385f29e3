"""ONNX: how our operators are translated, and what surrounds the graph of a model.

`vitadapter::ms_deform_attn_fused` becomes its formula in `GridSample` nodes, which every runtime
has, or the node of TensorRT's `MultiscaleDeformableAttnPlugin`.
"""

from collections.abc import Sequence
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from onnx.defs import OpSchema
from onnxscript import opset18
from onnxscript.values import Op, Opset
from torch.export import ExportedProgram

import vitadapter.ops  # noqa: F401  the operator

from ..programs import paused_collection

__all__ = ["cropped", "to_onnx", "with_padding"]

_OPSET = 18
# The domain is that of ONNX Runtime's TensorRT provider; TensorRT itself looks only at the node's
# name. No package registers a schema for it, without which onnxscript does not record a node.
_PLUGIN_SCHEMA = OpSchema(
    "MultiscaleDeformableAttnPlugin_TRT",
    "trt.plugins",
    1,
    inputs=[
        OpSchema.FormalParameter("value", "tensor(float)"),
        OpSchema.FormalParameter("spatial_shapes", "tensor(int32)"),
        OpSchema.FormalParameter("level_start_index", "tensor(int32)"),
        OpSchema.FormalParameter("sampling_locations", "tensor(float)"),
        OpSchema.FormalParameter("attention_weights", "tensor(float)"),
    ],
    outputs=[OpSchema.FormalParameter("output", "tensor(float)")],
)
_PLUGIN: Any = Op(Opset("trt.plugins", 1), _PLUGIN_SCHEMA.name, _PLUGIN_SCHEMA)
# What onnxscript calls tensors while it records nodes.
_Value = Any
# Any, because its annotations do not accept the results of its own operators.
op: Any = opset18


def to_onnx(
    program: ExportedProgram,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    tensorrt_plugin: bool = False,
) -> onnx.ModelProto:
    """Translates a program.

    Args:
        program: as `torch.export` has made it.
        inputs, outputs: names of its inputs and outputs.
        tensorrt_plugin: whether deformable attention becomes the node of TensorRT's plugin.

    Returns:
        The model, with its weights inside.

    Raises:
        ValueError: ONNX has no form for a part of the program.
    """
    form = _as_plugin if tensorrt_plugin else _as_grid_samples
    try:
        with paused_collection():
            translated = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=_OPSET,
                custom_translation_table={torch.ops.vitadapter.ms_deform_attn_fused.default: form},
                optimize=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"ONNX cannot hold the model: {error}") from error
    assert translated is not None
    return translated.model_proto


def _sizes(spatial_shapes: Sequence[int | _Value]) -> list[_Value]:
    """Returns each number of `(h0, w0, h1, w1, ...)` as a vector of one int64."""
    one = op.Constant(value_ints=[1])
    return [
        op.Constant(value_ints=[size]) if isinstance(size, int) else op.Reshape(size, one)
        for size in spatial_shapes
    ]


def _softmax(logits: _Value) -> _Value:
    """Softmax of (B, Q, heads, levels, points) over levels and points together."""
    flat = op.Reshape(logits, op.Constant(value_ints=[0, 0, 0, -1]))
    return op.Reshape(op.Softmax(flat, axis=-1), op.Shape(logits))


def _locations(
    sizes: Sequence[_Value], reference_points: _Value, sampling_offsets: _Value
) -> _Value:
    """Returns locations (B, Q, heads, levels, points, 2) as (x, y), like the operator's."""
    widths_first = [size for pair in zip(sizes[1::2], sizes[::2], strict=True) for size in pair]
    shape = op.Constant(value_ints=[-1, 1, 2])
    extents = op.Cast(op.Reshape(op.Concat(*widths_first, axis=0), shape), to=TensorProto.FLOAT)
    points = op.Unsqueeze(reference_points, op.Constant(value_ints=[2, 4]))
    return op.Div(op.Add(op.Mul(points, extents), sampling_offsets), extents)


def _as_grid_samples(
    value: _Value,
    spatial_shapes: Sequence[int | _Value],
    reference_points: _Value,
    sampling_offsets: _Value,
    attention_logits: _Value,
) -> _Value:
    """`ms_deform_attn_fused` by one `GridSample` for each level."""
    heads, head_dim = value.shape[2], value.shape[3]
    points = sampling_offsets.shape[4]
    sizes = _sizes(spatial_shapes)
    # What lies outside stays outside. `GridSample` cannot read what is too far away.
    locations = op.Clip(_locations(sizes, reference_points, sampling_offsets), -1.0, 2.0)
    grids = op.Sub(op.Mul(locations, 2.0), 1.0)
    grids = op.Transpose(grids, perm=[3, 0, 2, 1, 4, 5])  # (levels, B, heads, Q, points, 2)
    weights = op.Transpose(_softmax(attention_logits), perm=[3, 0, 2, 1, 4])
    tokens = op.Transpose(value, perm=[0, 2, 3, 1])  # (B, heads, head_dim, S)
    queries = op.Shape(sampling_offsets, start=1, end=2)
    first, output = op.Constant(value_ints=[0]), None
    for level, (height, width) in enumerate(zip(sizes[::2], sizes[1::2], strict=True)):
        after = op.Add(first, op.Mul(height, width))
        feature = op.Slice(tokens, first, after, op.Constant(value_ints=[3]))
        first = after
        feature = op.Reshape(feature, _shape([-1, head_dim], height, width))
        index = op.Constant(value_int=level)
        grid = op.Reshape(op.Gather(grids, index, axis=0), _shape([-1], queries, [points, 2]))
        weight = op.Reshape(op.Gather(weights, index, axis=0), _shape([-1, 1], queries, [points]))
        # (B * heads, head_dim, Q, points)
        sampled = op.GridSample(feature, grid, mode="bilinear", padding_mode="zeros")
        summed = op.ReduceSum(op.Mul(sampled, weight), op.Constant(value_ints=[3]), keepdims=0)
        output = summed if output is None else op.Add(output, summed)
    output = op.Reshape(output, _shape([-1, heads * head_dim], queries))
    return op.Transpose(output, perm=[0, 2, 1])


def _shape(*parts: Sequence[int] | _Value) -> _Value:
    """Joins numbers and vectors to a shape."""
    vectors = [op.Constant(value_ints=part) if isinstance(part, list) else part for part in parts]
    return op.Concat(*vectors, axis=0)


def _as_plugin(
    value: _Value,
    spatial_shapes: Sequence[int | _Value],
    reference_points: _Value,
    sampling_offsets: _Value,
    attention_logits: _Value,
) -> _Value:
    """`ms_deform_attn_fused` as softmax, locations and TensorRT's plugin.

    The plugin's inputs are value (B, S, heads, C), sizes (levels, 2) and first tokens (levels,) in
    int32, locations (B, Q, heads, levels, points, 2) and weights (B, Q, heads, levels, points); its
    output is (B, Q, heads, C).
    """
    sizes = _sizes(spatial_shapes)
    starts = [op.Constant(value_ints=[0])]
    for height, width in zip(sizes[:-2:2], sizes[1:-2:2], strict=True):
        starts.append(op.Add(starts[-1], op.Mul(height, width)))
    shapes = op.Reshape(op.Concat(*sizes, axis=0), op.Constant(value_ints=[-1, 2]))
    output = _PLUGIN(
        value,
        op.Cast(shapes, to=TensorProto.INT32),
        op.Cast(op.Concat(*starts, axis=0), to=TensorProto.INT32),
        _locations(sizes, reference_points, sampling_offsets),
        _softmax(attention_logits),
    )
    return op.Reshape(output, op.Constant(value_ints=[0, 0, -1]))


def with_padding(model: onnx.ModelProto, multiple: int) -> onnx.ModelProto:
    """Makes a model with the inputs `images` and `size` pad its images to a multiple of pixels.

    Args:
        model: its `images` are (B, 3, H, W), H and W multiples of `multiple`; changed in place.
        multiple: in pixels.

    Returns:
        The model, whose only input is `images` of any size.
    """
    graph = model.graph
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == "images":
                node.input[i] = "padded_images"
    (images,) = [value for value in graph.input if value.name == "images"]
    (size,) = [value for value in graph.input if value.name == "size"]
    graph.input.remove(size)
    for axis, name in ((2, "height"), (3, "width")):
        images.type.tensor_type.shape.dim[axis].ClearField("dim_value")
        images.type.tensor_type.shape.dim[axis].dim_param = name
    constants = {"multiple": [multiple], "zeros": [0, 0, 0, 0], "zeros_2": [0, 0]}
    for name, values in constants.items():
        graph.initializer.append(
            helper.make_tensor(f"padding_{name}", TensorProto.INT64, [len(values)], values)
        )
    nodes = [
        helper.make_node("Shape", ["images"], ["size"], start=2),
        helper.make_node("Neg", ["size"], ["padding_negative"]),
        # As in Python, the remainder has the sign of the divisor.
        helper.make_node("Mod", ["padding_negative", "padding_multiple"], ["padding_end"]),
        helper.make_node(
            "Concat",
            ["padding_zeros", "padding_zeros_2", "padding_end"],
            ["padding_pads"],
            axis=0,
        ),
        # TensorRT has no uint8 but for inputs and outputs.
        helper.make_node("Cast", ["images"], ["padding_pixels"], to=TensorProto.FLOAT),
        helper.make_node("Pad", ["padding_pixels", "padding_pads"], ["padded_images"]),
    ]
    for node in reversed(nodes):
        graph.node.insert(0, node)
    return model


def cropped(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """Makes a model crop an output (B, K, H, W) to the `size` of the images; changed in place."""
    graph = model.graph
    for node in graph.node:
        for i, name in enumerate(node.output):
            if name == output:
                node.output[i] = f"{output}_padded"
    (value,) = [value for value in graph.output if value.name == output]
    for axis, name in ((2, "height"), (3, "width")):
        value.type.tensor_type.shape.dim[axis].ClearField("dim_value")
        value.type.tensor_type.shape.dim[axis].dim_param = name
    graph.initializer.append(helper.make_tensor("crop_starts", TensorProto.INT64, [2], [0, 0]))
    graph.initializer.append(helper.make_tensor("crop_axes", TensorProto.INT64, [2], [2, 3]))
    inputs = [f"{output}_padded", "crop_starts", "size", "crop_axes"]
    graph.node.append(helper.make_node("Slice", inputs, [output]))
    return model
