from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.utils.events import EventStorage
from golden_heads import GoldenHead, batched_inputs, check_detections

from vitadapter.checkpoint.official_dense import GFL_ROWS
from vitadapter.layers.nms import HardNMS
from vitadapter.modeling.atss_matcher import ATSSMatcher
from vitadapter.modeling.meta_arch import GFL, GFLHead


@pytest.fixture(scope="module")
def head(golden: ModuleType, shared: Path) -> GoldenHead:
    return GoldenHead(golden, shared, "mmdet2_gfl")


@pytest.fixture(scope="module")
def model(head: GoldenHead) -> GFL:
    gfl = GFL(
        backbone=head.features("p3"),
        head=GFLHead(in_channels=256, num_levels=5, num_classes=80),
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
    head.load(gfl.head, GFL_ROWS, ("bbox_head.", "head."))
    return gfl


def test_predictions(head: GoldenHead, model: GFL) -> None:
    features = list(model.backbone(torch.empty(0)).values())
    with torch.no_grad():
        logits, distributions = model.head(features)
    for level in range(5):
        assert head.difference(f"cls{level}", logits[level]) < 5e-5
        assert head.difference(f"bbox{level}", distributions[level]) < 5e-5


def test_anchors_and_labels(head: GoldenHead, model: GFL) -> None:
    features = list(model.backbone(torch.empty(0)).values())
    anchors = model.anchor_generator(features)
    for level, boxes in enumerate(anchors):
        assert head.difference(f"anchors{level}", boxes.tensor) == 0
    instances = [x["instances"] for x in batched_inputs()]
    labels, boxes = model.label_anchors(anchors, instances, [(128, 160)] * 2)
    assert labels.tolist() == head.arrays["assigned_labels"].tolist()
    positive = labels < 80
    assert int(positive.sum()) == int(head.arrays["num_total_pos"])
    assert boxes[positive].tolist() == head.arrays["positive_boxes"].tolist()


def test_losses_by_level(head: GoldenHead, model: GFL) -> None:
    features = list(model.backbone(torch.empty(0)).values())
    anchors = model.anchor_generator(features)
    instances = [x["instances"] for x in batched_inputs()]
    labels, boxes = model.label_anchors(anchors, instances, [(128, 160)] * 2)
    with torch.no_grad():
        losses = model.losses(anchors, model.head(features), labels, boxes)
    for ours, theirs in (
        ("loss_cls", "loss_cls"),
        ("loss_box_reg", "loss_bbox"),
        ("loss_dfl", "loss_dfl"),
    ):
        expected = head.arrays[f"r0_loss.{theirs}"]
        torch.testing.assert_close(losses[ours], torch.from_numpy(expected), rtol=1e-6, atol=5e-6)


def test_training_sums_the_levels(head: GoldenHead, model: GFL) -> None:
    model.train()
    with EventStorage():
        losses = model(batched_inputs())
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_dfl"}
    expected = float(head.arrays["r0_loss.loss_cls"].sum())
    assert losses["loss_cls"].item() == pytest.approx(expected, rel=1e-6)


def test_detections(head: GoldenHead, model: GFL) -> None:
    model.eval()
    with torch.no_grad():
        outputs = model(batched_inputs())
    for image, output in enumerate(outputs):
        check_detections(head, image, output["instances"])
