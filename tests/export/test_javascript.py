"""The example for ONNX Runtime in JavaScript, which runs without Python.

It needs node and the packages that the example names, in the folder that NODE_PATH names.
"""

import dataclasses
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from detectron2.data import transforms as T
from exported_models import build, predictor_of
from PIL import Image

from vitadapter.export import ExportedPredictor
from vitadapter.export.description import KEY, describe
from vitadapter.export.formats import Onnx
from vitadapter.export.graphs import graph_of
from vitadapter.export.programs import program_of

EXAMPLE = Path(__file__).parents[2] / "projects/ViTAdapter/deployment/onnxruntime" / "detect.cjs"


def _node(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(["node", *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    if shutil.which("node") is None:
        pytest.skip("node absent")
    for package in ("onnxruntime-node", "sharp"):
        if _node("-e", f"require('{package}')").returncode:
            pytest.skip(f"npm's package {package} absent (see NODE_PATH)")


def test_it_prints_what_python_finds(tmp_path: Path) -> None:
    model = build("atss")
    source = predictor_of(model)
    source.augmentations = T.AugmentationList([T.ResizeShortestEdge(122, 300)])
    file, photo = tmp_path / "detector.onnx", tmp_path / "photo.png"
    graph = graph_of(model)
    Onnx().write(program_of(graph), describe(source, graph, None), file)
    image = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)
    Image.fromarray(image[:, :, ::-1]).save(photo)
    done = _node(EXAMPLE, file, photo)
    assert done.returncode == 0, done.stderr
    found = [line.split("\t") for line in done.stdout.splitlines()]
    expected = ExportedPredictor(file)(image)["instances"]
    names = ["cat", "dog", "cow"]
    assert len(found) > 0
    assert [line[0] for line in found] == [names[number] for number in expected.pred_classes]
    numbers = np.array([line[1:] for line in found], dtype=float)
    np.testing.assert_allclose(numbers[:, 0], expected.scores, atol=2e-3)
    np.testing.assert_allclose(numbers[:, 1:], expected.pred_boxes.tensor, atol=0.5)


def test_files_that_it_cannot_use(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    done = _node(EXAMPLE, tmp_path / "empty.onnx", tmp_path / "nowhere.png")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("empty.onnx was not written by vitadapter export")
    assert _node(EXAMPLE).returncode == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(full_size=True), "detector.onnx was exported with --full-size"),
        (dict(outputs=["sem_seg"]), "detector.onnx holds no detector"),
        (dict(size=[64, 64]), "takes padded images of 64,64 pixels (height, width), got 64,96"),
        (dict(resize=[]), "the sides of the image must be longer than 32 pixels"),
        (dict(resize=[{"name": "ResizeToFit"}]), "this program cannot resize by ResizeToFit"),
    ],
)
def test_what_it_refuses(changed: dict, message: str, tmp_path: Path) -> None:
    """Before it opens the graph, so that none is needed."""
    model = build("atss")
    source = predictor_of(model)
    source.augmentations = T.AugmentationList([T.ResizeShortestEdge(61, 300)])
    description = dataclasses.replace(describe(source, graph_of(model), None), **changed)
    file, photo = tmp_path / "detector.onnx", tmp_path / "photo.png"
    proto = onnx.ModelProto()
    onnx.helper.set_model_props(proto, {KEY: description.to_json()})
    file.write_bytes(proto.SerializeToString())
    Image.fromarray(np.zeros((30, 41, 3), np.uint8)).save(photo)
    done = _node(EXAMPLE, file, photo)
    assert done.returncode == 1
    assert message in done.stderr
