"""ATSS and GFL compute what the golden heads of the official release did."""

from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.utils.events import EventStorage
from golden_heads import GoldenHead, batched_inputs, check_detections
from torch import Tensor

from vitadapter.checkpoint.official.layouts import ATSS_ROWS, GFL_ROWS
from vitadapter.layers.nms import HardNMS
from vitadapter.modeling.dense import ATSSHead, ATSSMatcher, GFLHead, SingleAnchorDetector
from vitadapter.modeling.dense.detector import per_anchor

# Golden names of the predictions and, by our names, of the losses.
PREDICTIONS = {"atss": ("cls", "bbox", "centerness"), "gfl": ("cls", "bbox")}
LOSSES = {
    "atss": {
        "loss_cls": "loss_cls",
        "loss_box_reg": "loss_bbox",
        "loss_centerness": "loss_centerness",
    },
    "gfl": {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox", "loss_dfl": "loss_dfl"},
}


class Case(NamedTuple):
    """A golden head, and a detector with its weights on its features."""

    name: str
    head: GoldenHead
    model: SingleAnchorDetector

    def features(self) -> list[Tensor]:
        return list(self.model.backbone(torch.empty(0)).values())


def _detector(name: str, head: GoldenHead) -> SingleAnchorDetector:
    shared = dict(
        backbone=head.features("p3"),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[64], [128], [256], [512], [1024]],
            aspect_ratios=[1.0],
            strides=[8, 16, 32, 64, 128],
            offset=0.0,
        ),
        anchor_matcher=ATSSMatcher(topk=9),
        num_classes=80,
        test_nms=HardNMS(0.6),
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
    )
    sizes = dict(
        in_channels=256, num_levels=5, num_classes=80, conv_dims=[256, 256, 256, 256], norm="GN"
    )
    if name == "gfl":
        return SingleAnchorDetector(head=GFLHead(**sizes), **shared)
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    return SingleAnchorDetector(head=ATSSHead(**sizes, box2box_transform=transform), **shared)


@pytest.fixture(scope="module", params=["atss", "gfl"])
def case(request: pytest.FixtureRequest, golden: ModuleType) -> Case:
    name = request.param
    head = GoldenHead(golden, f"mmdet2_{name}")
    model = _detector(name, head)
    rows = {"atss": ATSS_ROWS, "gfl": GFL_ROWS}[name]
    head.load(model.head, rows, ("bbox_head.", "head."))
    return Case(name, head, model)


def test_predictions(case: Case) -> None:
    with torch.no_grad():
        predictions = case.model.head(case.features())
    for name, levels in zip(PREDICTIONS[case.name], predictions, strict=True):
        assert len(levels) == 5
        for level, predicted in enumerate(levels):
            assert case.head.difference(f"{name}{level}", predicted) < 5e-5


def test_anchors_and_labels(case: Case) -> None:
    anchors = case.model.anchor_generator(case.features())
    for level, boxes in enumerate(anchors):
        assert case.head.difference(f"anchors{level}", boxes.tensor) == 0
    instances = [x["instances"] for x in batched_inputs()]
    labels, boxes = case.model.label_anchors(anchors, instances, [(128, 160)] * 2)
    assert labels.tolist() == case.head.arrays["assigned_labels"].tolist()
    positive = labels < 80
    assert int(positive.sum()) == int(case.head.arrays["num_total_pos"])
    assert boxes[positive].tolist() == case.head.arrays["positive_boxes"].tolist()


def test_losses_by_level(case: Case) -> None:
    features = case.features()
    anchors = case.model.anchor_generator(features)
    instances = [x["instances"] for x in batched_inputs()]
    labels, boxes = case.model.label_anchors(anchors, instances, [(128, 160)] * 2)
    with torch.no_grad():
        predictions = per_anchor(case.model.head(features))
        losses = case.model.head.losses(anchors, predictions, labels, boxes)
    for ours, theirs in LOSSES[case.name].items():
        expected = torch.from_numpy(case.head.arrays[f"r0_loss.{theirs}"])
        torch.testing.assert_close(losses[ours], expected, rtol=1e-6, atol=5e-6)


def test_training_sums_the_levels(case: Case) -> None:
    case.model.train()
    with EventStorage():
        losses = case.model(batched_inputs())
    assert losses.keys() == LOSSES[case.name].keys()
    for ours, theirs in LOSSES[case.name].items():
        expected = float(case.head.arrays[f"r0_loss.{theirs}"].sum())
        assert losses[ours].item() == pytest.approx(expected, rel=1e-5)


def test_detections(case: Case) -> None:
    case.model.eval()
    with torch.no_grad():
        outputs = case.model(batched_inputs())
    for image, output in enumerate(outputs):
        check_detections(case.head, image, output["instances"])
