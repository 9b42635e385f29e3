"""Every kind of model as a file: the same answers at sizes that were not exported."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from detectron2.structures import Instances
from exported_models import build, predictor_of
from tensorrt_operators import unsupported
from torch import nn

from vitadapter.engine.predictor import Prediction
from vitadapter.export import ExportedPredictor
from vitadapter.export.description import describe
from vitadapter.export.formats import FORMATS
from vitadapter.export.graphs import graph_of
from vitadapter.export.programs import program_of

SIZES = [(61, 83), (128, 64), (40, 200)]
BOTH = ("torch", "onnx")
# Semantic FPN is in test_files.py.
FORMATS_OF = {
    "mask_rcnn": ("torch",),  # as ONNX in tests/commands/test_export.py
    "cascade": BOTH,
    "htc": BOTH,
    "atss": BOTH,
    "gfl": BOTH,
    "sparse_rcnn": BOTH,
    "upernet": BOTH,
    "mask2former": BOTH,
}
# How many objects are found in images of one grey value.
FEW_OBJECTS = {"mask_rcnn": {130: 0, 180: 1}, "htc": {60: 0}}


def _images(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def _predictors(model: nn.Module, formats: Sequence[str], folder: Path) -> list[ExportedPredictor]:
    """One for each format, of one trace, because tracing is slow."""
    graph = graph_of(model)
    program, description = program_of(graph), describe(predictor_of(model), graph, None)
    files = [folder / f"model{FORMATS[name].suffix}" for name in formats]
    for name, file in zip(formats, files, strict=True):
        FORMATS[name].write(program, description, file)
    return [ExportedPredictor(file) for file in files]


def _expected(model: nn.Module, image: np.ndarray) -> Prediction:
    rgb = torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).copy())
    with torch.no_grad():
        (output,) = model([{"image": rgb, "height": image.shape[0], "width": image.shape[1]}])
    return output


def _assert_same_instances(found: Instances, expected: Instances) -> None:
    assert len(found) == len(expected)
    scores = expected.scores.sort().values
    assert (scores.diff() > 5e-5).all(), "the order of equal scores would be chance"
    assert found.image_size == expected.image_size
    assert found.pred_classes.tolist() == expected.pred_classes.tolist()
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    boxes = found.pred_boxes.tensor, expected.pred_boxes.tensor
    torch.testing.assert_close(*boxes, rtol=1e-4, atol=1e-3)
    assert found.has("pred_masks") == expected.has("pred_masks")
    if found.has("pred_masks"):
        differing = (found.pred_masks != expected.pred_masks).sum()
        assert differing <= 1e-3 * expected.pred_masks.numel()


def _assert_same(found: Prediction, expected: Prediction) -> None:
    assert found.keys() == expected.keys()
    if "instances" in expected:
        _assert_same_instances(found["instances"], expected["instances"])
    if "sem_seg" in expected:
        scale = float(expected["sem_seg"].abs().max())
        assert found["sem_seg"].shape == expected["sem_seg"].shape
        assert (found["sem_seg"] - expected["sem_seg"]).abs().max() < 1e-4 * scale
    if "panoptic_seg" in expected:
        assert (found["panoptic_seg"][0] != expected["panoptic_seg"][0]).float().mean() < 1e-3
        ids = [[s["category_id"] for s in x["panoptic_seg"][1]] for x in (found, expected)]
        assert ids[0] == ids[1]


@pytest.mark.parametrize(("name", "formats"), FORMATS_OF.items())
def test_the_same_answers_at_other_sizes(name: str, formats: Sequence[str], tmp_path: Path) -> None:
    model = build(name)
    predictors = _predictors(model, formats, tmp_path)
    if "onnx" in formats:
        assert unsupported(onnx.load(tmp_path / "model.onnx")) == set()
    for predictor in predictors:
        assert predictor.metadata.thing_classes == ["cat", "dog", "cow"]
    for height, width in SIZES:
        image = _images(height, width)
        expected = _expected(model, image)
        if "instances" in expected:
            assert len(expected["instances"]) > 0
        if "sem_seg" in expected:
            assert expected["sem_seg"].shape[1:] == (height, width)
        for predictor in predictors:
            _assert_same(predictor(image), expected)
    for grey, number in FEW_OBJECTS.get(name, {}).items():
        image = np.full((61, 83, 3), grey, np.uint8)
        expected = _expected(model, image)
        assert len(expected["instances"]) == number
        for predictor in predictors:
            _assert_same(predictor(image), expected)
