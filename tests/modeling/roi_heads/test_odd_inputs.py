"""Cascade and HTC heads on inputs without objects, or with objects that are hardly any."""

import pytest
import torch
from cascade_samples import build_cascade, build_htc, make_features, proposals_of, targets_of
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

PROPOSALS = [[[5, 5, 60, 50], [10, 30, 40, 100], [0, 0, 160, 128]], [[80, 20, 120, 90]]]
CASES = {
    # proposals, ground truth boxes and classes of two images
    "ordinary": (PROPOSALS, [[[4, 6, 59, 52]], [[80, 20, 121, 88]]], [[2], [0]]),
    "no ground truth in one": (PROPOSALS, [[[4, 6, 59, 52]], []], [[2], []]),
    "no ground truth": (PROPOSALS, [[], []], [[], []]),
    "no proposals": ([[], []], [[[4, 6, 59, 52]], [[80, 20, 121, 88]]], [[2], [0]]),
    "neither": ([[], []], [[], []], [[], []]),
    "one-pixel boxes": (
        [[[5, 5, 6, 6], [7, 7, 7, 9]], [[0, 0, 1, 1]]],
        [[[5, 5, 6, 6]], [[159, 127, 160, 128]]],
        [[2], [0]],
    ),
    "partly outside": (
        [[[-20, -30, 60, 50]], [[100, 90, 300, 200]]],
        [[[-10, -20, 60, 50]], [[110, 90, 300, 190]]],
        [[2], [0]],
    ),
    "twice the same": (PROPOSALS, [[[4, 6, 59, 52]] * 2, []], [[2, 3], []]),
}
BUILDERS = {
    "cascade": (build_cascade, {"agnostic": False, "norm": "SyncBN"}),
    "htc": (build_htc, {"agnostic": True}),
    "htc o365": (build_htc, {"agnostic": True, "norm": "SyncBN"}),
}
each_kind = pytest.mark.parametrize("kind", list(BUILDERS))


@each_kind
@pytest.mark.parametrize("case", list(CASES))
def test_training(kind: str, case: str) -> None:
    build, arguments = BUILDERS[kind]
    heads = build(**arguments).train()
    proposals, boxes, classes = CASES[case]
    features = {name: f.requires_grad_() for name, f in make_features().items()}
    extra = (torch.randint(0, 183, (2, 16, 20)),) if build is build_htc else ()
    with EventStorage():
        _, losses = heads(
            None, features, proposals_of(proposals), targets_of(boxes, classes), *extra
        )
    assert len(losses) == 9 + len(extra)
    assert all(loss.isfinite() for loss in losses.values()), losses
    sum(losses.values()).backward()
    for name, parameter in heads.named_parameters():
        # A parameter without gradient stops distributed training.
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@each_kind
@pytest.mark.parametrize("case", list(CASES))
@torch.no_grad()
def test_inference(kind: str, case: str) -> None:
    build, arguments = BUILDERS[kind]
    heads = build(**arguments).eval()
    proposals = CASES[case][0]
    found, losses = heads(None, make_features(), proposals_of(proposals))
    assert losses == {}
    for detections, given in zip(found, proposals, strict=True):
        assert (len(detections) > 0) == (len(given) > 0)
        assert detections.pred_masks.shape == (len(detections), 1, 28, 28)
        boxes = detections.pred_boxes.tensor
        assert boxes.isfinite().all()
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= 160).all()
        assert (boxes[:, 3] <= 128).all()


@each_kind
@torch.no_grad()
def test_no_detections(kind: str) -> None:
    build, arguments = BUILDERS[kind]
    heads = build(**arguments, score_thresh=0.99).eval()
    found, _ = heads(None, make_features(), proposals_of(PROPOSALS))
    for detections in found:
        assert len(detections) == 0
        assert detections.pred_boxes.tensor.shape == (0, 4)
        assert detections.pred_masks.shape == (0, 1, 28, 28)


@each_kind
@torch.no_grad()
def test_masks_of_given_boxes(kind: str) -> None:
    """As test-time augmentation asks for them."""
    build, arguments = BUILDERS[kind]
    heads = build(**arguments).eval()
    features = make_features()
    found, _ = heads(None, features, proposals_of(PROPOSALS))
    again = []
    for detections in found:
        again.append(type(detections)(detections.image_size))
        again[-1].pred_boxes = Boxes(detections.pred_boxes.tensor)
        again[-1].pred_classes = detections.pred_classes
    heads.forward_with_given_boxes(features, again)
    for a, b in zip(again, found, strict=True):
        torch.testing.assert_close(a.pred_masks, b.pred_masks)
