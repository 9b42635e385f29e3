"""Formats and precisions: the answers of a small detector and a small segmenter."""

import copy
import json
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported_models import build, predictor_of
from onnx import TensorProto
from torch import Tensor, nn
from torch.export import ExportedProgram

from vitadapter.export import ExportedPredictor, export
from vitadapter.export.description import Description, describe
from vitadapter.export.differences import differences
from vitadapter.export.formats import FORMATS, OpenVino, Quantizing
from vitadapter.export.formats import onnx as onnx_format
from vitadapter.export.formats import openvino as openvino_format
from vitadapter.export.graphs import graph_of
from vitadapter.export.graphs.graph import Graph
from vitadapter.export.precision import tolerance_of
from vitadapter.export.programs import program_of

PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
SIZES = [(61, 83), (128, 64)]
FULL_SIZE = ", full size"


def _image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


@cache
def _traced(name: str) -> tuple[nn.Module, ExportedProgram, onnx.ModelProto]:
    """A model, its program and its graph of ONNX, since these take long."""
    model = build(name.removesuffix(FULL_SIZE))
    graph = _graph(name, model)
    program = program_of(graph)
    description = describe(predictor_of(model), graph, None)
    return model, program, onnx_format.onnx_model(program, description)


def _graph(name: str, model: nn.Module) -> Graph:
    return graph_of(model, full_size=name.endswith(FULL_SIZE))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    def run(name: str, format: str, precision: torch.dtype) -> Path:
        model, program, graph = _traced(name)

        def copied(*args: object, **kwargs: object) -> onnx.ModelProto:
            copy = onnx.ModelProto()
            copy.CopyFrom(graph)
            return copy

        for module in (onnx_format, openvino_format):
            monkeypatch.setattr(module, "onnx_model", copied)
        file = tmp_path / f"model{FORMATS[format].suffix}"
        description = describe(predictor_of(model), _graph(name, model), None, precision)
        if precision == torch.int8:
            writer = FORMATS[format]
            assert isinstance(writer, Quantizing)
            images = [_pixels(_image(*size)) for size in SIZES]
            writer.write_int8(program, description, file, images)
        else:
            # Halves are written into the program.
            FORMATS[format].write(copy.deepcopy(program), description, file)
        return file

    return run


def _pixels(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).copy())[None]


WRITTEN = [
    ("torch", torch.float16),
    ("torch", torch.bfloat16),
    ("onnx", torch.float16),
    ("onnx", torch.int8),
    ("openvino", torch.float32),
    ("openvino", torch.float16),
    ("openvino", torch.bfloat16),
    ("openvino", torch.int8),
]


@pytest.mark.parametrize(
    ("name", "format", "precision"),
    [
        *((name, *each) for name in ("mask_rcnn", "semantic_fpn") for each in WRITTEN),
        *((f"mask_rcnn{FULL_SIZE}", *each) for each in WRITTEN if each[1] != torch.bfloat16),
    ],
)
def test_answers_are_within_the_tolerance(
    name: str, format: str, precision: torch.dtype, write: Callable[..., Path]
) -> None:
    pytest.importorskip(format)
    predictor = ExportedPredictor(write(name, format, precision))
    model = _traced(name)[0]
    found: dict[str, list[float]] = {}
    for height, width in (*SIZES, (40, 200)):
        image = _image(height, width)
        with torch.no_grad():
            (expected,) = model([{"image": _pixels(image)[0], "height": height, "width": width}])
        for kind, values in differences(expected, predictor(image)).items():
            found.setdefault(kind, []).extend(values)
    assert found.keys() >= ({"detections", "masks"} if "mask_rcnn" in name else set())
    for kind, values in found.items():
        assert len(values) > 0
        assert np.mean(values) <= tolerance_of(precision).answers[kind], kind


def test_what_is_computed_in_half_precision(write: Callable[..., Path]) -> None:
    graph = onnx.load(write("mask_rcnn", "onnx", torch.float16)).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    casts = {n.output[0]: n.attribute[0].i for n in graph.node if n.op_type == "Cast"}
    products = [node for node in graph.node if node.op_type in PRODUCTS]
    assert len(products) > 5
    for node in products:
        kinds = {types.get(name, casts.get(name)) for name in node.input}
        assert kinds == {TensorProto.FLOAT16}
    others = {name for n in graph.node if n.op_type not in {*PRODUCTS, "Cast"} for name in n.input}
    assert all(types[name] != TensorProto.FLOAT16 for name in others & types.keys())


def test_what_is_computed_in_half_precision_by_a_program(write: Callable[..., Path]) -> None:
    file = write("mask_rcnn", "torch", torch.bfloat16)
    program = torch.export.load(file)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    products = [n for n in program.graph.nodes if re.search("conv|linear|addmm", str(n.target))]
    assert len(products) > 5
    halves = set[str]()
    for node in products:
        read = [value.name for value in node.all_input_nodes]
        assert {values[name].dtype for name in (*read, node.name)} == {torch.bfloat16}
        halves |= {node.name, *read}
    for node in program.graph.nodes:
        if node not in products and node.op == "call_function" and "to.dtype" not in node.name:
            assert str(node.target).startswith("aten.to") or not any(
                value.name in halves for value in node.all_input_nodes
            )
    kept = [w for w in program.state_dict.values() if w.dim() > 1 and w.dtype != torch.bfloat16]
    assert kept == []
    assert program.example_inputs is None
    assert file.stat().st_size < 2e6


def test_what_is_computed_in_int8(write: Callable[..., Path]) -> None:
    graph = onnx.load(write("mask_rcnn", "onnx", torch.int8)).graph
    makers = {name: node for node in graph.node for name in node.output}
    int8 = {
        node.name
        for node in graph.node
        if node.op_type in PRODUCTS and makers[node.input[0]].op_type == "DequantizeLinear"
    }
    exact = {n.name: n for n in graph.node if n.op_type in PRODUCTS and n.name not in int8}
    assert len(int8) >= 3
    weights = {name for node in exact.values() for name in node.input}
    for name in ("objectness_logits", "anchor_deltas", "cls_score", "bbox_pred", "predictor"):
        assert any(name in weight for weight in weights), name


def test_precisions_that_a_format_cannot_hold(tmp_path: Path) -> None:
    source = predictor_of(build("semantic_fpn"))
    for format, precision, known, got in (
        ("onnx", torch.bfloat16, "fp32, fp16, int8", "bf16"),
        ("torch", torch.int8, "fp32, fp16, bf16", "int8"),
        ("aoti", torch.float16, "fp32, bf16", "fp16"),
        ("tensorrt", torch.float16, "fp32", "fp16"),
    ):
        file = tmp_path / f"a{FORMATS[format].suffix}"
        with pytest.raises(
            ValueError, match=f"{format} can hold the precisions {known}, got {got}"
        ):
            export(source, format, file, precision=precision)
    with pytest.raises(ValueError, match=r"one of torch\.float32, .*, got torch\.float64"):
        export(source, "onnx", file, precision=torch.float64)
    with pytest.raises(ValueError, match=r"needed for int8, .*, got 0 images for int8"):
        export(source, "onnx", tmp_path / "a.onnx", precision=torch.int8)
    with pytest.raises(ValueError, match="for no other precision, got 1 images for fp32"):
        export(source, "onnx", tmp_path / "a.onnx", calibration=[tmp_path / "a.png"])
    assert list(tmp_path.iterdir()) == []


def test_files_of_openvino(write: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    file = write("semantic_fpn", "openvino", torch.float32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    assert ExportedPredictor(file).description.precision == "fp32"
    file.write_text(file.read_text()[:500])
    with pytest.raises(ValueError, match=r"model\.xml cannot be used .*: OpenVINO cannot read it"):
        ExportedPredictor(file)
    file.with_suffix(".bin").unlink()
    with pytest.raises(ValueError, match=r"its weights, .*model\.bin, are missing"):
        ExportedPredictor(file)


def test_a_missing_openvino_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match="package openvino: pip install"):
        OpenVino().read(tmp_path / "model.xml")


def test_descriptions_of_the_first_version_are_of_float32() -> None:
    model = build("semantic_fpn")
    entries = json.loads(describe(predictor_of(model), graph_of(model), None).to_json())
    del entries["precision"], entries["full_size"]
    read = Description.from_json(json.dumps(entries | {"version": 1}))
    assert (read.precision, read.full_size, read.version) == ("fp32", False, 3)
