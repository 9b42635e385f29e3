from collections.abc import Sequence

import pytest
import torch
from cascade_samples import (
    IMAGE,
    box_arguments,
    build_cascade,
    build_htc,
    make_features,
    proposals_of,
    targets_of,
)
from detectron2.modeling.roi_heads import CascadeROIHeads as DetectronCascadeROIHeads
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from vitadapter.layers.nms import HardNMS
from vitadapter.layers.soft_nms import SoftNMS
from vitadapter.modeling.roi_heads import CascadeROIHeads

GT_BOXES = [[[10.5, 12.0, 70.0, 90.5], [60.0, 40.0, 155.5, 120.0]], [[5.0, 5.0, 30.0, 28.5]]]
GT_CLASSES = [[3, 1], [0]]


def _proposals(number: int = 20, seed: int = 1) -> list[Instances]:
    generator = torch.Generator().manual_seed(seed)
    boxes = []
    for truth in GT_BOXES:
        corner = torch.rand(number, 2, generator=generator) * 100
        size = 4 + torch.rand(number, 2, generator=generator) * 50
        near = torch.tensor(truth).repeat(3, 1)
        near += torch.randn(near.shape, generator=generator) * 3
        boxes.append(torch.cat([torch.cat([corner, corner + size], dim=1), near]))
    proposals = proposals_of([b.tolist() for b in boxes])
    for p in proposals:
        p.proposal_boxes.clip(IMAGE)
    return proposals


def _randomize(heads: torch.nn.Module, scale: float = 0.3) -> None:
    """Predictions that differ between stages, classes and boxes, unlike those of fresh heads."""
    generator = torch.Generator().manual_seed(2)
    for predictor in heads.box_predictor:
        for layer in (predictor.cls_score, predictor.bbox_pred):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * scale


def _losses(heads: CascadeROIHeads, *arguments: object) -> dict[str, Tensor]:
    torch.manual_seed(0)
    with EventStorage():
        return heads.train()(None, *arguments)[1]


def _detectron_twin(ours: CascadeROIHeads, **box_head: object) -> DetectronCascadeROIHeads:
    """Detectron2's heads of the same weights; all our mask heads become equal to its only one."""
    arguments = box_arguments(**box_head)
    for mask_head in ours.mask_head:
        mask_head.load_state_dict(ours.mask_head[0].state_dict())
    theirs = DetectronCascadeROIHeads(
        **arguments,
        mask_in_features=arguments["box_in_features"],
        mask_pooler=ours.mask_pooler,
        mask_head=ours.mask_head[0],
    )
    theirs.load_state_dict(
        {
            name.replace("mask_head.0.", "mask_head."): value
            for name, value in ours.state_dict().items()
            if not name.startswith(("mask_head.1.", "mask_head.2."))
        }
    )
    return theirs


TWIN = {
    "dim": 8,
    "fc_dim": 16,
    "num_classes": 5,
    "agnostic": True,
    "norm": "",
    "score_thresh": 0.05,
}


@torch.no_grad()
def test_detects_what_detectron2_detects() -> None:
    ours = build_cascade(**TWIN).eval()
    _randomize(ours)
    theirs = _detectron_twin(ours, **TWIN).eval()
    features = make_features()
    found, _ = ours(None, features, _proposals())
    expected, _ = theirs(None, features, _proposals())
    for a, b in zip(found, expected, strict=True):
        assert len(a) == len(b) > 5
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor)
        torch.testing.assert_close(a.scores, b.scores)
        assert a.pred_classes.tolist() == b.pred_classes.tolist()
        torch.testing.assert_close(a.pred_masks, b.pred_masks)


@torch.no_grad()
def test_the_first_stage_learns_what_detectron2s_learns() -> None:
    ours = build_cascade(**TWIN)
    _randomize(ours)
    theirs = _detectron_twin(ours, **TWIN).train()
    features = make_features()
    found = _losses(ours, features, _proposals(), targets_of(GT_BOXES, GT_CLASSES))
    proposals = _proposals()
    for p in proposals:
        p.objectness_logits = torch.zeros(len(p))
    with EventStorage():
        _, expected = theirs(None, features, proposals, targets_of(GT_BOXES, GT_CLASSES))
    for name in ("loss_cls_stage0", "loss_box_reg_stage0"):
        torch.testing.assert_close(found[name], expected[name])
    # Its only mask head learns on the boxes of the first stage as well.
    torch.testing.assert_close(found["loss_mask_stage0"], expected["loss_mask"])


@torch.no_grad()
def test_averages_logits_or_probabilities() -> None:
    heads = build_cascade(num_classes=4, masks=False).eval()
    stages = [(torch.randn(7, 5) * 3, torch.zeros(7, 4)) for _ in range(3)]
    proposals = proposals_of([[[0, 0, 9, 9]] * 3, [[0, 0, 9, 9]] * 4])
    averages = {}
    for averages_logits in (True, False):
        heads.average_logits = averages_logits
        parts = heads._average_scores(stages, proposals)
        assert [len(part) for part in parts] == [3, 4]
        averages[averages_logits] = torch.cat(parts)
    logits = torch.stack([scores for scores, _ in stages])
    torch.testing.assert_close(averages[True], logits.mean(0).softmax(-1))
    torch.testing.assert_close(averages[False], logits.softmax(-1).mean(0))


@torch.no_grad()
def test_a_stage_hands_on_the_boxes_of_one_class() -> None:
    """The likeliest in inference; in training the matched one, if there is one."""
    heads = build_cascade(num_classes=3, agnostic=False, masks=False)
    proposals = proposals_of([[[10, 10, 30, 50]] * 3])
    deltas = torch.randn(3, 3 * 4)
    scores = torch.tensor([[0.0, 2.0, 1.0, 9.0], [3.0, 0.0, 1.0, 9.0], [0.0, 1.0, 2.0, -9.0]])
    transform = heads.box_predictor[1].box2box_transform

    def boxes_of(classes: Sequence[int]) -> Tensor:
        chosen = torch.stack([deltas.view(3, 3, 4)[i, c] for i, c in enumerate(classes)])
        return transform.apply_deltas(chosen, proposals[0].proposal_boxes.tensor)

    (refined,) = heads.eval()._refine((scores, deltas), proposals, 1)
    torch.testing.assert_close(refined.proposal_boxes.tensor, boxes_of([1, 0, 2]))
    proposals[0].gt_classes = torch.tensor([2, 3, 0])  # 3: background
    proposals[0].is_gt = torch.tensor([False, False, False])
    (refined,) = heads.train()._refine((scores, deltas), proposals, 1)
    torch.testing.assert_close(refined.proposal_boxes.tensor, boxes_of([2, 0, 0]))


@torch.no_grad()
@pytest.mark.parametrize("build", [build_cascade, build_htc])
def test_ground_truth_is_a_proposal_of_every_stage_but_not_refined(build) -> None:
    heads = build()
    seen = []

    def record(features: object, sampled: list[Instances], stage: int) -> object:
        seen.append([(len(s), int(s.is_gt.sum())) for s in sampled])
        return type(heads)._predict(heads, features, sampled, stage)

    heads._predict = record
    features, sem_seg = make_features(), torch.zeros(2, 16, 20, dtype=torch.long)
    extra = (sem_seg,) if build is build_htc else ()
    _losses(heads, features, _proposals(), targets_of(GT_BOXES, GT_CLASSES), *extra)
    # 20 proposals, 3 near every ground truth, and the ground truth.
    after = [(20 + 6 + 2, 2), (20 + 3 + 1, 1)]
    assert seen[0] == after
    if build is build_cascade:
        assert seen == [after] * 3
    else:
        # Before the masks the stage appends them as well, which stay proposals of no next stage.
        assert [[gts for _, gts in stage] for stage in seen] == [[2, 1]] * 3


@torch.no_grad()
def test_stage_weights_scale_all_losses_of_a_stage() -> None:
    arguments = (make_features(), _proposals(), targets_of(GT_BOXES, GT_CLASSES))
    heads = build_cascade(stage_loss_weights=(1.0, 1.0, 1.0))
    plain = _losses(heads, *arguments)
    heads.stage_loss_weights = (1.0, 0.5, 0.25)
    weighted = _losses(heads, *arguments)
    assert len(plain) == 9
    for name, loss in plain.items():
        factor = {"0": 1.0, "1": 0.5, "2": 0.25}[name[-1]]
        torch.testing.assert_close(weighted[name], loss * factor)


@torch.no_grad()
def test_the_suppression_is_exchangeable() -> None:
    heads = build_cascade(num_classes=2).eval()
    features = make_features()
    usual, _ = heads(None, features, _proposals())
    heads.nms = HardNMS(0.5)
    hard, _ = heads(None, features, _proposals())
    heads.nms = SoftNMS()
    soft, _ = heads(None, features, _proposals())
    for a, b, c in zip(usual, hard, soft, strict=True):
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert len(c) > len(b)
        assert (c.scores[:-1] >= c.scores[1:]).all()


@torch.no_grad()
def test_scores_of_half_precision_do_not_tie() -> None:
    heads = build_cascade(num_classes=4, masks=False, average_logits=True).eval()
    _randomize(heads)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = heads(None, make_features(), _proposals())
    for detected in found:
        assert detected.scores.dtype == torch.float32
        assert len(detected.scores.unique()) == len(detected) > 20


@torch.no_grad()
def test_masks_are_the_mean_of_the_stages() -> None:
    heads = build_cascade(num_classes=3).eval()
    for mask_head, bias in zip(heads.mask_head, (-1.0, 0.0, 3.0), strict=True):
        mask_head.predictor.weight.zero_()
        mask_head.predictor.bias.copy_(torch.tensor([bias, 2 * bias, 3 * bias]))
    found, _ = heads(None, make_features(), _proposals())
    classes = torch.cat([f.pred_classes for f in found])
    masks = torch.cat([f.pred_masks for f in found])
    assert classes.unique().numel() == 3
    expected = torch.tensor([[-1.0], [0.0], [3.0]]) * (classes + 1)
    torch.testing.assert_close(masks.amax((1, 2, 3)), expected.sigmoid().mean(0))
    torch.testing.assert_close(masks.amin((1, 2, 3)), expected.sigmoid().mean(0))


@pytest.mark.parametrize(
    "arguments", [{"stage_loss_weights": (1.0, 0.5)}, {"stage_loss_weights": ()}]
)
def test_stages_must_agree(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"one of each, got .*'box_heads': 3.*weights': [02]"):
        build_cascade(**arguments)
