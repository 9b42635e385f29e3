"""Results of an image must not depend on the images that share its batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dense_configs import shrink_dense
from detectron2.config import instantiate
from detectron2.structures import Instances
from omegaconf import DictConfig
from project_configs import CONFIGS, load, shrink
from torch import nn

from vitadapter.engine.inference import InferenceModel
from vitadapter.modeling.same_size_batches import predict_by_size

Input = dict[str, object]
# (height, width) in pixels: two pairs that are padded alike, and two that are alone.
SIZES = [(48, 80), (64, 60), (33, 90), (64, 64), (100, 70), (64, 130)]


def _config(stem: str) -> Path:
    return next(path for path in CONFIGS if path.stem == stem)


def _few_detections(cfg: DictConfig) -> DictConfig:
    cfg.model.proposal_generator.post_nms_topk = (50, 50)
    cfg.model.roi_heads.box_predictor.test_topk_per_image = 10
    return cfg


CASES: dict[str, Callable[[], DictConfig]] = {
    "mask_rcnn": lambda: _few_detections(shrink(load(_config("mask_rcnn_vit_adapter_s_deit_3x")))),
    "atss": lambda: shrink_dense(load(_config("atss_vit_adapter_s_deit_3x"))),
    "gfl": lambda: shrink_dense(load(_config("gfl_vit_adapter_s_deit_3x"))),
}


@pytest.fixture(scope="module", params=list(CASES))
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    model = instantiate(CASES[request.param]().model).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma" in name:  # zero initially: the adapter would not reach the net
                parameter.fill_(0.5)
            elif "cls_score" in name and parameter.ndim > 1:  # scores that differ
                parameter.mul_(30)
    return model


@pytest.fixture(scope="module")
def alone(model: nn.Module) -> list[Instances]:
    """What the model finds in each image by itself."""
    with torch.no_grad():
        return [model([single])[0]["instances"] for single in _images()]


def _images() -> list[Input]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8),
            "height": 2 * h,
            "width": 2 * w,
        }
        for h, w in SIZES
    ]


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
