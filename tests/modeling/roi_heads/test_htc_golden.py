"""The official HTC heads of the golden file, from converted weights."""

from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from cascade_samples import IMAGE, LEVELS, build_htc, proposals_of
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from vitadapter.checkpoint.official.conversion import NameTable
from vitadapter.checkpoint.official.layouts import HTC_HEADS

# Boxes, in pixels, are float32 in Detectron2 whatever the heads compute in.
BOX_TOLERANCE = 1e-4
BEST = 15  # detections of an image


def _renamed(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """The golden file has the names below `roi_head.`, the state dict those below `roi_heads.`."""
    table = NameTable(HTC_HEADS)
    return {
        table.to_ours(f"roi_head.{name}").removeprefix("roi_heads."): tensor
        for name, tensor in official.items()
    }


@pytest.fixture(scope="module")
def case(golden: ModuleType) -> SimpleNamespace:
    meta, keys, arrays = golden.load(golden.path("mmdet2_htc"))
    heads = build_htc(dim=256, fc_dim=1024, num_classes=80, score_thresh=0.001)
    official = golden.make_state_dict(keys)
    assert golden.check_weights(keys, arrays, official) < 1e-5
    heads.load_state_dict(_renamed(official))
    features = {
        name: torch.from_numpy(golden.make_input(meta["feature_seed"] + i, meta["levels"][i]))
        for i, name in enumerate(LEVELS)
    }
    proposals = proposals_of([arrays["proposals0"].tolist(), arrays["proposals1"].tolist()])

    def difference(name: str, value: Tensor) -> float:
        return golden.compare(arrays, "r0", name, value)["max_abs"]

    return SimpleNamespace(
        meta=meta,
        arrays=arrays,
        heads=heads,
        features=features,
        proposals=proposals,
        difference=difference,
    )


def _rois(proposals: list[Instances]) -> Tensor:
    """(R, 5): image and box."""
    boxes = [p.proposal_boxes.tensor for p in proposals]
    return torch.cat([torch.cat([torch.full_like(b[:, :1], i), b], 1) for i, b in enumerate(boxes)])


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "exact", "after_boxes"), [(torch.float32, 5e-5, 5e-5), (torch.float64, 1e-9, 1e-5)]
)
def test_outputs(
    case: SimpleNamespace, dtype: torch.dtype, exact: float, after_boxes: float
) -> None:
    heads = case.heads.to(dtype).eval()
    logits, features = heads._with_semantic({n: f.to(dtype) for n, f in case.features.items()})
    assert case.difference("sem_logits", logits) < exact
    assert case.difference("sem_feat", features["semantic"]) < exact

    proposals, all_scores = case.proposals, []
    for stage in range(3):
        assert case.difference(f"s{stage}_rois", _rois(proposals)) < BOX_TOLERANCE
        scores, deltas = heads._predict(features, proposals, stage)
        tolerance = after_boxes if stage else exact
        assert case.difference(f"s{stage}_cls", scores) < tolerance
        assert case.difference(f"s{stage}_bbox", deltas) < tolerance
        all_scores.append(scores)
        proposals = heads._refine((scores, deltas), proposals, stage)
    assert case.difference("mean_cls", torch.stack(all_scores).mean(0)) < after_boxes
    final = torch.cat([p.proposal_boxes.tensor for p in proposals])
    assert case.difference("final_boxes", final) < BOX_TOLERANCE

    rois = torch.from_numpy(case.arrays["r0_mask_rois"])
    x = heads._mask_features(features, [Boxes(rois[rois[:, 0] == i, 1:]) for i in range(2)])
    for stage, masks in enumerate(heads._mask_logits(x, range(3))):
        assert case.difference(f"s{stage}_mask", masks) < exact


@torch.no_grad()
def test_losses(case: SimpleNamespace) -> None:
    targets = []
    for i, (boxes, labels) in enumerate(
        zip(case.meta["gt_boxes"], case.meta["gt_labels"], strict=True)
    ):
        masks = np.unpackbits(case.arrays[f"gt_masks{i}"]).reshape(-1, *IMAGE)
        target = Instances(IMAGE, gt_boxes=Boxes(torch.tensor(boxes)))
        target.gt_classes = torch.tensor(labels)
        target.gt_masks = BitMasks(torch.from_numpy(masks).bool())
        targets.append(target)
    sem_seg = torch.from_numpy(case.arrays["gt_semantic"]).squeeze(1)
    heads = case.heads.float().train()
    with EventStorage():
        _, losses = heads(None, case.features, case.proposals, targets, sem_seg)
    official = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox", "loss_mask": "loss_mask"}
    expected = {
        f"{ours}_stage{s}": f"s{s}.{theirs}" for s in range(3) for ours, theirs in official.items()
    } | {"loss_sem_seg": "loss_semantic_seg"}
    assert set(losses) == set(expected)
    for name, theirs in expected.items():
        assert case.difference(f"loss.{theirs}", losses[name][None]) < 5e-6, name


@torch.no_grad()
def test_detections(case: SimpleNamespace) -> None:
    """Against per-class NMS over the golden scores and boxes, and masks of the golden logits."""
    heads = case.heads.float().eval()
    heads.box_predictor[-1].test_topk_per_image = BEST
    detections, losses = heads(None, case.features, case.proposals)
    assert losses == {}
    numbers = [len(p) for p in case.proposals]
    probabilities = torch.from_numpy(case.arrays["r0_mean_cls"]).softmax(dim=1).split(numbers)
    boxes = torch.from_numpy(case.arrays["r0_final_boxes"]).split(numbers)
    for found, scores, image_boxes in zip(detections, probabilities, boxes, strict=True):
        expected = _class_wise_nms(image_boxes, scores[:, :-1], score_thresh=0.001, iou=0.5)
        assert len(found) == len(expected) == BEST
        best = torch.tensor([score for score, _, _ in expected])
        torch.testing.assert_close(found.scores, best, rtol=0, atol=1e-5)
        assert found.pred_classes.tolist() == [label for _, label, _ in expected]
        rows = torch.stack([box for _, _, box in expected])
        torch.testing.assert_close(found.pred_boxes.tensor, rows, rtol=0, atol=BOX_TOLERANCE)
        assert found.pred_masks.shape == (BEST, 1, 28, 28)


def _class_wise_nms(
    boxes: Tensor, scores: Tensor, score_thresh: float, iou: float
) -> list[tuple[float, int, Tensor]]:
    """The best (score, class, box), suppressed one box at a time."""
    kept = []
    for label in range(scores.shape[1]):
        of_class: list[tuple[float, int, Tensor]] = []
        for i in scores[:, label].argsort(descending=True).tolist():
            if scores[i, label] > score_thresh and all(
                _iou(boxes[i], other) <= iou for _, _, other in of_class
            ):
                of_class.append((scores[i, label].item(), label, boxes[i]))
        kept += of_class
    return sorted(kept, key=lambda detection: -detection[0])[:BEST]


def _iou(a: Tensor, b: Tensor) -> float:
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    common = sides.prod()
    return (common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common)).item()
