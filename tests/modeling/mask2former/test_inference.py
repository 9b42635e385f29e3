"""Made-up predictions whose segmentation is known."""

import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from torch import Tensor

from vitadapter.modeling.mask2former import InstanceInference, MaskPrediction, PanopticInference
from vitadapter.modeling.mask2former.inference import semantic_scores

THINGS, CLASSES = [0, 1], 3
NO_OBJECT = CLASSES


def same(masks: Tensor) -> Tensor:
    return masks


def queries(*segments: tuple[int, float, tuple[slice, slice]]) -> tuple[Tensor, Tensor]:
    """Class logits and mask logits (Q, 8, 8) from classes, their probabilities and regions."""
    class_logits = torch.full((len(segments), CLASSES + 1), -20.0)
    mask_logits = torch.full((len(segments), 8, 8), -4.0)
    for i, (category, probability, region) in enumerate(segments):
        class_logits[i, category] = torch.logit(torch.tensor(probability))
        class_logits[i, NO_OBJECT if category != NO_OBJECT else 0] = 0.0
        mask_logits[i][region] = 4.0
    return class_logits, mask_logits


TOP, BOTTOM = (slice(0, 4), slice(None)), (slice(4, 8), slice(None))
LEFT, ALL = (slice(None), slice(0, 4)), (slice(None), slice(None))


def test_panoptic_map() -> None:
    logits = queries(
        (0, 0.99, (slice(0, 4), slice(0, 4))),
        (0, 0.98, (slice(0, 4), slice(4, 8))),
        (2, 0.97, (slice(4, 8), slice(0, 4))),
        (2, 0.96, (slice(4, 8), slice(4, 7))),
        (NO_OBJECT, 0.99, (slice(4, 8), slice(7, 8))),
    )
    segment_ids, segments = PanopticInference(thing_classes=THINGS)(*logits, same)
    # Two things of a class are two segments, two pieces of stuff are one.
    assert [(s["id"], s["category_id"], s["isthing"]) for s in segments] == [
        (1, 0, True),
        (2, 0, True),
        (3, 2, False),
    ]
    assert [s["score"] for s in segments] == pytest.approx([0.99, 0.98, 0.97], abs=1e-5)
    expected = torch.zeros(8, 8, dtype=torch.int32)
    expected[:4, :4], expected[:4, 4:], expected[4:, :7] = 1, 2, 3
    assert torch.equal(segment_ids, expected)


def test_panoptic_thresholds() -> None:
    logits = queries((0, 0.99, TOP), (1, 0.98, LEFT), (2, 0.85, BOTTOM))
    arguments = dict(thing_classes=THINGS)
    # Half of what the second claims is won by the first.
    _, segments = PanopticInference(**arguments)(*logits, same)
    assert [s["category_id"] for s in segments] == [0]
    _, segments = PanopticInference(**arguments, overlap_threshold=0.4)(*logits, same)
    assert [s["category_id"] for s in segments] == [0, 1, 2]
    _, segments = PanopticInference(**arguments, overlap_threshold=0.4, score_threshold=0.9)(
        *logits, same
    )
    assert [s["category_id"] for s in segments] == [0, 1]
    with pytest.raises(ValueError, match=r"lie in \[0, 1\], got score_threshold=2"):
        PanopticInference(thing_classes=THINGS, score_threshold=2)


def test_no_query_is_sure() -> None:
    logits = queries((0, 0.5, TOP), (NO_OBJECT, 0.99, BOTTOM))
    segment_ids, segments = PanopticInference(thing_classes=THINGS)(*logits, same)
    assert segments == []
    assert segment_ids.shape == (8, 8)
    assert not segment_ids.any()


def test_instances() -> None:
    logits = queries((0, 0.9, TOP), (2, 0.8, ALL), (1, 0.7, LEFT))
    instances = InstanceInference(thing_classes=THINGS, max_per_image=3)(*logits, same)
    assert instances.pred_classes.tolist() == [0, 1]
    inside = torch.tensor(4.0).sigmoid().item()
    assert instances.scores.tolist() == pytest.approx([0.9 * inside, 0.7 * inside], abs=1e-4)
    assert instances.pred_masks.dtype == torch.bool
    assert torch.equal(instances.pred_masks[0], logits[1][0] > 0)
    assert instances.pred_boxes.tensor.tolist() == [[0, 0, 8, 4], [0, 0, 4, 8]]
    # In the form that Detectron2's evaluators read.
    assert [x["category_id"] for x in instances_to_coco_json(instances.to("cpu"), 7)] == [0, 1]


def test_a_query_may_be_several_classes_and_have_no_pixel() -> None:
    class_logits = torch.tensor([[2.0, 1.9, -5.0, -5.0]])
    mask_logits = torch.full((1, 8, 8), -4.0)
    instances = InstanceInference(max_per_image=2)(class_logits, mask_logits, same)
    assert instances.pred_classes.tolist() == [0, 1]
    assert instances.scores.tolist() == [0, 0]
    assert not instances.pred_masks.any()
    with pytest.raises(ValueError, match="max_per_image must be at least 1, got 0"):
        InstanceInference(max_per_image=0)


def test_no_instance_of_a_thing() -> None:
    logits = queries((2, 0.9, ALL))
    instances = InstanceInference(thing_classes=THINGS, max_per_image=1)(*logits, same)
    assert len(instances) == 0
    assert instances.pred_masks.shape == (0, 8, 8)


def test_semantic_scores_are_sums_over_queries() -> None:
    torch.manual_seed(0)
    prediction = MaskPrediction(torch.randn(2, 4, CLASSES + 1), torch.randn(2, 4, 3, 5))
    scores = semantic_scores(prediction)
    expected = torch.zeros(2, CLASSES, 3, 5)
    for image in range(2):
        for query in range(4):
            classes = prediction.class_logits[image, query].softmax(0)[:-1]
            mask = prediction.mask_logits[image, query].sigmoid()
            expected[image] += classes[:, None, None] * mask
    torch.testing.assert_close(scores, expected)
