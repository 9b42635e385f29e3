"""Every kind of model in every format that runs here: the same answers at sizes not exported."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from exported_models import MODELS, build, predictor_of
from torch import nn

from vitadapter.export import ExportedPredictor
from vitadapter.export.description import describe
from vitadapter.export.graphs import graph_of
from vitadapter.export.programs import program_of
from vitadapter.export.runtimes import FORMATS

SIZES = [(61, 83), (128, 64), (40, 200)]


@pytest.fixture(scope="module", params=MODELS)
def model_and_files(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, dict[str, Path]]:
    model = build(request.param)
    graph = graph_of(model)
    program = program_of(graph)
    description = describe(predictor_of(model), graph, None)
    files = {}
    for name in ("torch", "onnx"):
        files[name] = tmp_path_factory.mktemp(name) / f"model{FORMATS[name].suffix}"
        FORMATS[name].write(program, description, files[name])
    return model, files


def _assert_same_instances(found: Instances, expected: Instances) -> None:
    assert len(found) == len(expected) > 0
    assert found.image_size == expected.image_size
    assert found.pred_classes.tolist() == expected.pred_classes.tolist()
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    boxes = found.pred_boxes.tensor, expected.pred_boxes.tensor
    torch.testing.assert_close(*boxes, rtol=1e-4, atol=1e-3)
    assert found.has("pred_masks") == expected.has("pred_masks")
    if found.has("pred_masks"):
        assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-3


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_the_same_answers_at_other_sizes(model_and_files, format: str) -> None:
    model, files = model_and_files
    predictor = ExportedPredictor(files[format])
    assert predictor.metadata.thing_classes == ["cat", "dog", "cow"]
    for height, width in SIZES:
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        rgb = torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).copy())
        with torch.no_grad():
            expected = model([{"image": rgb, "height": height, "width": width}])[0]
        found = predictor(image)
        assert found.keys() == expected.keys()
        if "instances" in expected:
            _assert_same_instances(found["instances"], expected["instances"])
        if "sem_seg" in expected:
            scale = float(expected["sem_seg"].abs().max())
            difference = (found["sem_seg"] - expected["sem_seg"]).abs().max()
            assert expected["sem_seg"].shape[1:] == (height, width)
            assert difference < 1e-4 * scale
        if "panoptic_seg" in expected:
            assert (found["panoptic_seg"][0] != expected["panoptic_seg"][0]).float().mean() < 1e-3
            ids = [[s["category_id"] for s in x["panoptic_seg"][1]] for x in (found, expected)]
            assert ids[0] == ids[1]
