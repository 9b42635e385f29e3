"""Cascade R-CNN heads (arXiv 1712.00726) with a mask head for every stage."""

from collections.abc import Mapping, Sequence

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import CascadeROIHeads as _CascadeROIHeads
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, select_foreground_proposals
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from vitadapter.layers.nms import NMS, HardNMS

from .fast_rcnn import fast_rcnn_inference
from .semantic_head import FusedSemanticHead

__all__ = ["SEMANTIC", "CascadeROIHeads"]

SEMANTIC = "semantic"  # name of the semantic head's features among those of the pyramid

Features = Mapping[str, Tensor]
# Logits (R, K + 1), and deltas (R, K * 4) or (R, 4), of all images together.
Predictions = tuple[Tensor, Tensor]


class CascadeROIHeads(_CascadeROIHeads):
    """Detectron2's cascade, trained and extended like the official ViT-Adapter models.

    In inference without masks, it is the same as Detectron2's. In addition,

    - each stage has its own mask head, and the probabilities of all stages are averaged;
    - class scores may be averaged as logits instead of as probabilities;
    - boxes may be regressed per class: a stage passes on those of the matched class, or of the most
      likely one if there is no match;
    - the suppression of overlapping boxes can be exchanged;
    - a semantic branch, like that of Hybrid Task Cascade, may help boxes and masks.

    In training, every stage matches, appends the ground truth and samples again; Detectron2 does so
    only before the first stage. The losses of the stages are weighted; Detectron2 divides the
    gradient of the features by the number of stages instead.

    Args:
        num_classes: number of foreground classes.
        box_in_features, box_pooler: features for boxes, shared by the stages.
        box_heads, box_predictors, proposal_matchers: one of each per stage.
        mask_in_features, mask_pooler: features for masks, shared by the stages; None without masks.
        mask_heads: one Detectron2 `MaskRCNNConvUpsampleHead` per stage; None without masks.
        batch_size_per_image: number of proposals that a stage samples.
        positive_fraction: maximum fraction of them that is foreground.
        proposal_append_gt: whether ground-truth boxes are proposals in every stage.
        stage_loss_weights: factors of each stage's losses; the defaults are the paper's.
        average_logits: whether class scores are averaged before the softmax, as in the
            official models, or after it, as in Detectron2.
        nms: how overlapping boxes of a class are suppressed; None for `HardNMS` with the last
            predictor's `test_nms_thresh`.
        semantic_head: a branch whose features are added to those for masks and, averaged to their
            size, to those for boxes; None for no such branch.

    Raises:
        ValueError: the arguments have different numbers of stages, or there is no stage.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        box_in_features: Sequence[str],
        box_pooler: ROIPooler,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[FastRCNNOutputLayers],
        proposal_matchers: Sequence[Matcher],
        mask_in_features: Sequence[str] | None = None,
        mask_pooler: ROIPooler | None = None,
        mask_heads: Sequence[nn.Module] | None = None,
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
        proposal_append_gt: bool = True,
        stage_loss_weights: Sequence[float] = (1.0, 0.5, 0.25),
        average_logits: bool = False,
        nms: NMS | None = None,
        semantic_head: FusedSemanticHead | None = None,
    ) -> None:
        stages = {
            "box_heads": box_heads,
            "box_predictors": box_predictors,
            "proposal_matchers": proposal_matchers,
            "stage_loss_weights": stage_loss_weights,
        }
        if mask_heads is not None:
            stages["mask_heads"] = mask_heads
        _check_stages(stages)
        super().__init__(
            num_classes=num_classes,
            box_in_features=box_in_features,
            box_pooler=box_pooler,
            box_heads=box_heads,
            box_predictors=box_predictors,
            proposal_matchers=proposal_matchers,
            mask_in_features=mask_in_features if mask_heads is not None else None,
            mask_pooler=mask_pooler,
            mask_head=None if mask_heads is None else nn.ModuleList(mask_heads),
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            proposal_append_gt=proposal_append_gt,
        )
        self.stage_loss_weights = tuple(stage_loss_weights)
        self.average_logits = average_logits
        self.nms = nms
        self.semantic_head = semantic_head

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        sem_seg: Tensor | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """
        Args:
            images: not used.
            features: maps (N, C, H, W), by name.
            proposals: those of each image, with "proposal_boxes".
            targets: the objects of each image, with "gt_boxes", "gt_classes" and, for masks,
                "gt_masks"; only in training.
            sem_seg: labels (N, H, W) at the stride of the semantic head, if there is one; only in
                training.

        Returns:
            In training, no instances and the losses; in inference, the detections and no losses.
        """
        del images
        semantic_logits, features = self._with_semantic(features)
        if self.training:
            assert targets is not None
            losses = self._losses(features, proposals, targets)
            if self.semantic_head is not None:
                assert semantic_logits is not None
                assert sem_seg is not None
                losses["loss_sem_seg"] = self.semantic_head.loss(semantic_logits, sem_seg)
            return [], losses
        detections = self._detect(features, proposals)
        return self.forward_with_given_boxes(features, detections), {}

    def forward_with_given_boxes(
        self, features: Features, instances: list[Instances]
    ) -> list[Instances]:
        """See `StandardROIHeads`."""
        return super().forward_with_given_boxes(self._with_semantic(features)[1], instances)

    def _with_semantic(self, features: Features) -> tuple[Tensor | None, Features]:
        """Returns the class logits of the semantic head, and the features with its own added."""
        if self.semantic_head is None or SEMANTIC in features:
            return None, features
        logits, semantic = self.semantic_head(features)
        return logits, {**features, SEMANTIC: semantic}

    def _losses(
        self, features: Features, proposals: list[Instances], targets: list[Instances]
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for stage, weight in enumerate(self.stage_loss_weights):
            with get_event_storage().name_scope(f"stage{stage}"):
                sampled = self._label_and_sample(proposals, targets, stage)
                self._log_samples(sampled)
                predictions = self._predict(features, sampled, stage)
                stage_losses = self.box_predictor[stage].losses(predictions, sampled)
                proposals = self._refine(predictions, sampled, stage)
                if self.mask_on:
                    sampled = self._mask_proposals(sampled, proposals, targets, stage)
                    stage_losses["loss_mask"] = self._mask_loss(features, sampled, stage)
            losses |= {f"{key}_stage{stage}": loss * weight for key, loss in stage_losses.items()}
        return losses

    @torch.no_grad()
    def _label_and_sample(
        self, proposals: list[Instances], targets: list[Instances], stage: int
    ) -> list[Instances]:
        """Samples proposals, with "proposal_boxes", "is_gt" and the "gt_*" of their objects."""
        return [
            self._label_and_sample_image(boxes, target, stage)
            for boxes, target in zip(proposals, targets, strict=True)
        ]

    def _label_and_sample_image(
        self, proposals: Instances, target: Instances, stage: int
    ) -> Instances:
        boxes = proposals.proposal_boxes
        if len(boxes) == 0 and len(target) == 0:
            # Batch norm cannot train without data: the whole image becomes background.
            height, width = proposals.image_size
            boxes = Boxes(boxes.tensor.new_tensor([[0, 0, width, height]]))
        matches, labels = self.proposal_matchers[stage](pairwise_iou(target.gt_boxes, boxes))
        is_gt = torch.zeros_like(labels, dtype=torch.bool)
        if self.proposal_append_gt:
            # Appended after the matching, where they would compete with the proposals near them.
            boxes = Boxes.cat([boxes, target.gt_boxes])
            own = torch.arange(len(target), device=matches.device)
            matches = torch.cat([matches, own])
            labels = torch.cat([labels, torch.ones_like(own, dtype=labels.dtype)])
            is_gt = torch.cat([is_gt, torch.ones_like(own, dtype=torch.bool)])
        chosen, classes = self._sample_proposals(matches, labels, target.gt_classes)
        sampled = Instances(proposals.image_size)
        sampled.proposal_boxes = boxes[chosen]
        sampled.is_gt = is_gt[chosen]
        sampled.gt_classes = classes
        if len(target) > 0:
            for name, value in target.get_fields().items():
                if name.startswith("gt_") and name != "gt_classes":
                    sampled.set(name, value[matches[chosen]])
        return sampled

    def _log_samples(self, sampled: list[Instances]) -> None:
        classes = torch.cat([samples.gt_classes for samples in sampled])
        foreground = int(((classes >= 0) & (classes < self.num_classes)).sum())
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", foreground / len(sampled))
        storage.put_scalar("roi_head/num_bg_samples", (len(classes) - foreground) / len(sampled))

    def _predict(self, features: Features, proposals: list[Instances], stage: int) -> Predictions:
        x = self._box_features(features, [p.proposal_boxes for p in proposals])
        logits, deltas = self.box_predictor[stage](self.box_head[stage](x))
        if logits.dtype in (torch.float16, torch.bfloat16):
            # In half precision, many of the averaged scores would be equal and have no order.
            logits = logits.float()
        return logits, deltas

    def _box_features(self, features: Features, boxes: list[Boxes]) -> Tensor:
        x = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        return self._add_semantic(x, features, boxes)

    @torch.no_grad()
    def _refine(
        self, predictions: Predictions, proposals: list[Instances], stage: int
    ) -> list[Instances]:
        """Returns the next stage's proposals: boxes of one class, without the ground truth's."""
        scores, deltas = predictions
        predicted = self.box_predictor[stage].predict_boxes((scores, deltas), proposals)
        refined = []
        for boxes, most_likely, given in zip(
            predicted,
            scores[:, :-1].argmax(dim=1).split([len(p) for p in proposals]),
            proposals,
            strict=True,
        ):
            classes = most_likely
            if self.training:
                matched = (given.gt_classes >= 0) & (given.gt_classes < self.num_classes)
                classes = torch.where(matched, given.gt_classes, most_likely)
            of_class = Boxes(_boxes_of(boxes, classes))
            of_class.clip(given.image_size)
            refined.append(Instances(given.image_size, proposal_boxes=of_class))
            if self.training:
                refined[-1] = refined[-1][~given.is_gt]
        return refined

    def _mask_proposals(
        self,
        sampled: list[Instances],
        refined: list[Instances],
        targets: list[Instances],
        stage: int,
    ) -> list[Instances]:
        """Returns what a stage's mask head trains on: the samples of its box head."""
        del refined, targets, stage
        return sampled

    def _mask_loss(self, features: Features, sampled: list[Instances], stage: int) -> Tensor:
        foreground, _ = select_foreground_proposals(sampled, self.num_classes)
        x = self._mask_features(features, [p.proposal_boxes for p in foreground])
        (logits,) = self._mask_logits(x, [stage])
        head = self.mask_head[stage]
        return mask_rcnn_loss(logits, foreground, head.vis_period) * head.loss_weight

    def _mask_features(self, features: Features, boxes: list[Boxes]) -> Tensor:
        x = self.mask_pooler([features[name] for name in self.mask_in_features], boxes)
        return self._add_semantic(x, features, boxes)

    def _add_semantic(self, x: Tensor, features: Features, boxes: list[Boxes]) -> Tensor:
        """Adds the averaged features of the semantic head to pooled features (R, C, H, W)."""
        if self.semantic_head is None:
            return x
        semantic = self.semantic_head.pooler([features[SEMANTIC]], boxes)
        return x + F.adaptive_avg_pool2d(semantic, (x.shape[2], x.shape[3]))

    def _mask_logits(self, x: Tensor, stages: Sequence[int]) -> list[Tensor]:
        """Computes the logits (R, K, 2H, 2W) of each of `stages`, from features (R, C, H, W)."""
        return [self.mask_head[stage].layers(x) for stage in stages]

    def _detect(self, features: Features, proposals: list[Instances]) -> list[Instances]:
        all_predictions: list[Predictions] = []
        for stage in range(self.num_cascade_stages):
            if stage > 0:
                proposals = self._refine(all_predictions[-1], proposals, stage - 1)
            all_predictions.append(self._predict(features, proposals, stage))
        predictor, predictions = self.box_predictor[-1], all_predictions[-1]
        return fast_rcnn_inference(
            predictor.predict_boxes(predictions, proposals),
            self._average_scores(all_predictions, proposals),
            [p.image_size for p in proposals],
            predictor.test_score_thresh,
            self.nms or HardNMS(predictor.test_nms_thresh),
            predictor.test_topk_per_image,
        )

    def _average_scores(
        self, predictions: Sequence[Predictions], proposals: list[Instances]
    ) -> list[Tensor]:
        """Averages the class probabilities (R, K + 1) of all stages, for each image."""
        if self.average_logits:
            mean = torch.stack([logits for logits, _ in predictions]).mean(dim=0)
            return list(self.box_predictor[-1].predict_probs((mean, predictions[-1][1]), proposals))
        stages = [
            predictor.predict_probs(of_stage, proposals)
            for predictor, of_stage in zip(self.box_predictor, predictions, strict=True)
        ]
        return [torch.stack(image).mean(dim=0) for image in zip(*stages, strict=True)]

    def _forward_mask(self, features: Features, instances: list[Instances]) -> list[Instances]:
        """Adds "pred_masks" (R, 1, M, M) in [0, 1], the mean of the stages, to detections."""
        if not self.mask_on:
            return instances
        x = self._mask_features(features, [detected.pred_boxes for detected in instances])
        stages = []
        for logits in self._mask_logits(x, range(len(self.mask_head))):
            mask_rcnn_inference(logits, instances)
            stages.append([detected.pred_masks for detected in instances])
        for detected, masks in zip(instances, zip(*stages, strict=True), strict=True):
            detected.pred_masks = torch.stack(masks).mean(dim=0)
        return instances


def _check_stages(arguments: Mapping[str, Sequence[object]]) -> None:
    numbers = {name: len(values) for name, values in arguments.items()}
    if len(set(numbers.values())) != 1 or 0 in numbers.values():
        raise ValueError(f"every stage of a cascade needs one of each, got {numbers}")


def _boxes_of(boxes: Tensor, classes: Tensor) -> Tensor:
    """Selects boxes (R, 4) of each row's class from (R, K * 4); boxes (R, 4) are kept."""
    if boxes.shape[1] == 4:
        return boxes
    rows = torch.arange(len(boxes), device=boxes.device)
    return boxes.view(len(boxes), boxes.shape[1] // 4, 4)[rows, classes]
