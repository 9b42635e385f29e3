"""Results of an image must not depend on the images that share its batch."""

import pytest
import torch
from detector_samples import DETECTORS, make_image, tiny_detector
from detectron2.structures import Instances
from torch import nn

from vitadapter.engine.inference import InferenceModel
from vitadapter.modeling.inference import predict_by_size

Input = dict[str, object]
# (height, width) in pixels: two pairs that are padded alike, and two that are alone.
SIZES = [(48, 80), (64, 60), (33, 90), (64, 64), (100, 70), (64, 130)]


@pytest.fixture(scope="module", params=DETECTORS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return tiny_detector(request.param).eval()


@pytest.fixture(scope="module")
def alone(model: nn.Module) -> list[Instances]:
    """What the model finds in each image by itself."""
    with torch.no_grad():
        return [model([single])[0]["instances"] for single in _images()]


def _images() -> list[Input]:
    return [make_image(size, seed) for seed, size in enumerate(SIZES)]


def _differ(first: Instances, second: Instances) -> bool:
    if len(first) != len(second):
        return True
    close = torch.allclose(first.scores, second.scores, rtol=1e-4, atol=1e-6)
    boxes = first.pred_boxes.tensor, second.pred_boxes.tensor
    return not (close and torch.allclose(*boxes, rtol=0, atol=1e-2))


@torch.no_grad()
def test_batch_of_one_equals_batch_of_four(model: nn.Module, alone: list[Instances]) -> None:
    inference = InferenceModel(model)
    images = _images()
    for start in (0, 2):
        together = inference(images[start : start + 4])
        for one, output in zip(alone[start:], together, strict=False):
            found = output["instances"]
            assert len(found) == len(one) > 0
            assert not _differ(found, one)
            assert torch.equal(found.pred_classes, one.pred_classes)
            if one.has("pred_masks"):
                assert (found.pred_masks != one.pred_masks).float().mean() < 1e-3


@torch.no_grad()
def test_a_padded_batch_does_change_results(model: nn.Module, alone: list[Instances]) -> None:
    """The cause: without it the test above would hold for any grouping."""
    padded = [output["instances"] for output in model(_images())]
    assert any(map(_differ, alone, padded))


def test_groups_by_padded_size_and_keeps_the_order() -> None:
    batches = []

    def predict(batch: list[Input]) -> list[dict[str, object]]:
        batches.append([tuple(single["image"].shape[1:]) for single in batch])
        return [{"size": tuple(single["image"].shape[1:])} for single in batch]

    outputs = predict_by_size(predict, _images(), 32)
    assert [output["size"] for output in outputs] == SIZES
    assert batches == [
        [(48, 80), (33, 90)],
        [(64, 60), (64, 64)],
        [(100, 70)],
        [(64, 130)],
    ]
    assert predict_by_size(predict, [], 32) == []
    outputs = predict_by_size(predict, _images(), 0)  # a backbone without a demand
    assert [output["size"] for output in outputs] == SIZES
