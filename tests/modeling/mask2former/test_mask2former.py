"""The whole model: trains, predicts in three formats, and refuses what it cannot use."""

import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import Instances
from mask2former_samples import CLASSES, THINGS, make_head, make_model, record_of

from vitadapter.modeling.inference import SemanticSegmentorWithTTA, SlidingWindow
from vitadapter.modeling.mask2former import (
    HungarianMatcher,
    Mask2Former,
    PanopticInference,
    SemanticTargets,
    SetCriterion,
)
from vitadapter.ops import MSDeformAttn, ms_deform_attn_fused_reference

TASKS = ["semantic", "instance", "panoptic"]
LOSSES = {"loss_ce", "loss_mask", "loss_dice"}


def total_of(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    assert set(losses) == LOSSES | {f"{name}_{i}" for name in LOSSES for i in range(4)}
    return sum(losses.values())


@pytest.mark.parametrize("task", TASKS)
def test_every_parameter_is_trained(task: str) -> None:
    model = make_model(task).train()
    total = total_of(model([record_of(64, 96), record_of(50, 70, seed=1)]))
    assert total.isfinite()
    total.backward()
    without = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert without == []


def test_it_learns_one_image() -> None:
    model = make_model("semantic")
    record = record_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    labels = record["sem_seg"]
    known = labels != 255
    model.train()
    first = None
    for _ in range(40):
        total = total_of(model([record]))
        first = total.item() if first is None else first
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert total.item() < 0.5 * first
    with torch.no_grad():
        (output,) = model.eval()([record])
    accuracy = (output["sem_seg"].argmax(0) == labels)[known].float().mean()
    assert accuracy > 0.9


def test_mixed_precision_on_cpu() -> None:
    """In bfloat16, losses in float32, near those of float32."""
    model = make_model("panoptic").train()
    torch.manual_seed(1)
    expected = total_of(model([record_of()]))
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([record_of()])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    total = total_of(losses)
    torch.testing.assert_close(total, expected, rtol=0.1, atol=0)
    total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (output,) = model.eval()([record_of()])
    assert output["instances"].scores.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_on_a_gpu(dtype: torch.dtype) -> None:
    model = make_model("panoptic").cuda().train()
    with torch.autocast("cuda", dtype):
        total = total_of(model([record_of(), record_of(50, 70)]))
    total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_predictions_do_not_depend_on_the_batch(task: str) -> None:
    model = make_model(task).eval()
    batch = [
        record_of(64, 96),
        record_of(50, 33, seed=1) | {"height": 100, "width": 66},
        record_of(32, 100, seed=2) | {"height": 20, "width": 100},
    ]
    outputs = model(batch)
    for record, together in zip(batch, outputs, strict=True):
        (alone,) = model([record])
        size = tuple(record["image"].shape[1:])
        size = (record.get("height", size[0]), record.get("width", size[1]))
        assert alone.keys() == together.keys()
        if task == "semantic":
            assert together["sem_seg"].shape == (CLASSES, *size)
            assert torch.equal(alone["sem_seg"], together["sem_seg"])
            continue
        instances = together["instances"]
        assert isinstance(instances, Instances)
        assert len(instances) == 10
        assert instances.image_size == size
        assert instances.pred_masks.shape == (10, *size)
        assert instances.pred_masks.dtype == torch.bool
        assert len(instances.pred_boxes) == 10
        assert torch.equal(alone["instances"].pred_masks, instances.pred_masks)
        assert torch.equal(alone["instances"].scores, instances.scores)
        if task == "panoptic":
            segment_ids, segments = together["panoptic_seg"]
            assert segment_ids.shape == size
            assert segment_ids.dtype == torch.int32
            assert set(segment_ids.unique().tolist()) - {0} == {s["id"] for s in segments}
            assert all(s["isthing"] == (s["category_id"] in THINGS) for s in segments)
            assert torch.equal(alone["panoptic_seg"][0], segment_ids)


@torch.no_grad()
def test_three_tasks_at_once() -> None:
    """One pass serves all, and each output is that of the model which has it alone."""
    model = make_model("panoptic").eval()
    model.semantic_on = True
    (output,) = model([record_of()])
    assert output.keys() == {"sem_seg", "instances", "panoptic_seg"}
    (semantic,) = make_model("semantic").eval()([record_of()])
    assert torch.equal(output["sem_seg"], semantic["sem_seg"])


@torch.no_grad()
def test_nothing_is_found() -> None:
    model = make_model("panoptic").eval()
    model.panoptic_inference.score_threshold = 1.0
    model.instance_inference.thing_classes = []
    (output,) = model([record_of() | {"height": 10, "width": 20}])
    segment_ids, segments = output["panoptic_seg"]
    assert (segments, segment_ids.shape, segment_ids.sum()) == ([], (10, 20), 0)
    assert output["instances"].pred_masks.shape == (0, 10, 20)


@torch.no_grad()
def test_sliding_windows_and_test_time_augmentation() -> None:
    """Windows as large as the image are the whole image; two windows are two predictions."""
    record = record_of(64, 96)
    (whole,) = make_model().eval()([record])
    (one_window,) = make_model(inference=SlidingWindow((64, 96), (64, 96))).eval()([record])
    torch.testing.assert_close(one_window["sem_seg"], whole["sem_seg"])
    model = make_model(inference=SlidingWindow((64, 64), (64, 32))).eval()
    (windows,) = model([record])
    left, right = (
        make_model().eval()([{"image": record["image"][..., x : x + 64]}])[0]["sem_seg"]
        for x in (0, 32)
    )
    torch.testing.assert_close(windows["sem_seg"][..., :32], left[..., :32])
    middle = (left[..., 32:] + right[..., :32]) / 2
    torch.testing.assert_close(windows["sem_seg"][..., 32:64], middle)
    augmented = SemanticSegmentorWithTTA(model, resizes=[T.Resize((64, 96))], flip=False)
    (output,) = augmented([{"image": record["image"]}])
    torch.testing.assert_close(output["sem_seg"], windows["sem_seg"].softmax(0))


@torch.no_grad()
def test_works_without_the_compiled_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model().eval()
    (expected,) = model([record_of()])
    monkeypatch.setattr(MSDeformAttn, "operator", staticmethod(ms_deform_attn_fused_reference))
    (output,) = model([record_of()])
    torch.testing.assert_close(output["sem_seg"], expected["sem_seg"])


@pytest.mark.parametrize("task", TASKS)
def test_an_image_without_truth_teaches_no_object(task: str) -> None:
    """All labels ignored, or no instance: masks add nothing, classes do, nothing is NaN."""
    record = record_of()
    record["sem_seg"][:] = 255
    record["instances"] = record["instances"][:0]
    model = make_model(task).train()
    losses = model([record])
    for name, loss in losses.items():
        assert loss.item() > 0 if name.startswith("loss_ce") else loss.item() == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # Detectron2's mapper leaves out gt_masks where there is no instance.
    record["instances"].remove("gt_masks")
    assert sum(model([record]).values()).isfinite()


def test_more_segments_than_queries() -> None:
    model = make_model("instance", num_queries=2).train()
    assert total_of(model([record_of()])).isfinite()


def test_diverged_predictions_are_an_error() -> None:
    model = make_model().train()
    with torch.no_grad():
        model.sem_seg_head.predictor.class_embed.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"8 class logits and 0 mask logits are NaN"):
        model([record_of()])


def _without(key: str) -> dict[str, object]:
    return {k: v for k, v in record_of().items() if k != key}


def _labels(value: int) -> dict[str, object]:
    record = record_of()
    record["sem_seg"][0, 0] = value
    return record


def _without_masks() -> dict[str, object]:
    record = record_of()
    record["instances"].remove("gt_masks")
    return record


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("semantic", _without("sem_seg"), '"sem_seg", which 0.png lacks'),
        ("semantic", _labels(5), r"classes must lie in \[0, 5\), got 0 to 5 in 0.png"),
        ("semantic", _labels(-1), r"classes must lie in \[0, 5\), got -1 to 4 in 0.png"),
        (
            "semantic",
            record_of() | {"sem_seg": torch.zeros(64, 64)},
            r"same \(height, width\), got \(\(64, 96\), \(64, 64\)\) of 0.png",
        ),
        ("instance", _without("instances"), '"instances" with gt_classes, which 0.png lacks'),
        ("panoptic", _without_masks(), 'the "instances" of 0.png have no gt_masks'),
    ],
)
def test_records_that_cannot_be_trained_on(
    task: str, record: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(task).train()([record])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"semantic_on": False}, "one of semantic_on, instance_inference and panoptic_inference"),
        (
            {
                "semantic_on": False,
                "panoptic_inference": PanopticInference(thing_classes=[]),
                "inference": SlidingWindow((64, 64), (64, 64)),
            },
            "serves only semantic_on",
        ),
        (
            {"criterion": SetCriterion(num_classes=7, matcher=HungarianMatcher())},
            "same num_classes, got 5 and 7",
        ),
    ],
)
def test_models_that_make_no_sense(arguments: dict[str, object], message: str) -> None:
    model = make_model()
    defaults = dict(
        backbone=model.backbone,
        sem_seg_head=make_head(),
        criterion=model.criterion,
        targets=SemanticTargets(),
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    with pytest.raises(ValueError, match=message):
        Mask2Former(**(defaults | arguments))
