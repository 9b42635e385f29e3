import pytest
import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference as detectron2_inference

from vitadapter.layers.nms import HardNMS
from vitadapter.layers.soft_nms import SoftNMS
from vitadapter.modeling.roi_heads.fast_rcnn import fast_rcnn_inference

IMAGES = [(90, 120), (60, 80)]


def _inputs(classes: int, agnostic: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(classes)
    boxes, scores = [], []
    for number in (40, 25):
        corner = torch.rand(number, 1 if agnostic else classes, 2, generator=generator) * 90 - 10
        size = torch.rand(corner.shape, generator=generator) * 50
        boxes.append(torch.cat([corner, corner + size], dim=-1).flatten(1))
        scores.append(torch.randn(number, classes + 1, generator=generator).softmax(-1))
    return boxes, scores


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("topk", [-1, 7, 1000])
@pytest.mark.parametrize("classes", [1, 5])
def test_equals_detectron2(agnostic: bool, topk: int, classes: int) -> None:
    boxes, scores = _inputs(classes, agnostic)
    scores[0][3] = float("nan")
    boxes[1][5, 2] = float("inf")
    expected, _ = detectron2_inference([b.clone() for b in boxes], scores, IMAGES, 0.05, 0.4, topk)
    found = fast_rcnn_inference(boxes, scores, IMAGES, 0.05, HardNMS(0.4), topk)
    for a, b in zip(found, expected, strict=True):
        assert 0 < len(a) == len(b)
        assert a.image_size == b.image_size
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.pred_classes, b.pred_classes)


def test_scores_are_those_that_the_suppression_returns() -> None:
    boxes = [torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]])]
    scores = [torch.tensor([[0.9, 0.1], [0.8, 0.2]])]
    (found,) = fast_rcnn_inference(boxes, scores, [(20, 20)], 0.05, SoftNMS(), 10)
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8 * (1 - 0.8)]))
