"""Mask R-CNN, Cascade Mask R-CNN and HTC++ as functions of plain tensors."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from torch import Tensor

from vitadapter.layers.nms import HardNMS
from vitadapter.modeling.roi_heads import CascadeROIHeads
from vitadapter.modeling.roi_heads.cascade import SEMANTIC

from .graph import Graph
from .regions import anchors_of, clip, exportable, pool, select, suppress

__all__ = ["RCNNGraph"]

Features = Mapping[str, Tensor]


class RCNNGraph(Graph):
    """A `GeneralizedRCNN` with `StandardROIHeads` or our `CascadeROIHeads`."""

    model: GeneralizedRCNN

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__(model)
        heads = model.roi_heads
        if not isinstance(heads, CascadeROIHeads) and type(heads) is not StandardROIHeads:
            raise ValueError(
                "roi_heads must be Detectron2's StandardROIHeads or our CascadeROIHeads to be "
                f"exported, got {type(heads).__name__}"
            )
        if type(model.proposal_generator) is not RPN:
            raise ValueError(
                "proposal_generator must be Detectron2's RPN to be exported, got "
                f"{type(model.proposal_generator).__name__}"
            )
        cascade = isinstance(heads, CascadeROIHeads)
        predictor = heads.box_predictor[-1] if cascade else heads.box_predictor
        own = heads.nms if cascade else None
        self.nms = exportable(own or HardNMS(predictor.test_nms_thresh))
        self.outputs = ("boxes", "scores", "classes") + (("masks",) if heads.mask_on else ())

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Detects objects.

        Args:
            images, size: see `Graph.normalised`; B is 1.

        Returns:
            Boxes (N, 4) as (x0, y0, x1, y1) in pixels, scores (N,) and classes (N,), best first,
            and, if there are masks, probabilities (N, M, M) inside the boxes.
        """
        features: Features = dict(self.model.backbone(self.normalised(images, size)))
        proposals = self._proposals(features, size)
        heads = self.model.roi_heads
        if isinstance(heads, CascadeROIHeads):
            _, features = heads._with_semantic(features)
        detect, add_masks = (
            (self._cascade, self._cascade_masks)
            if isinstance(heads, CascadeROIHeads)
            else (self._single_stage, self._single_masks)
        )
        boxes, scores, classes = detect(features, proposals, size)
        if not heads.mask_on:
            return boxes, scores, classes
        return boxes, scores, classes, add_masks(features, boxes, classes)

    def _proposals(self, features: Features, size: Tensor) -> Tensor:
        """Returns the best proposals (R, 4) of the RPN."""
        rpn = self.model.proposal_generator
        maps = [features[name] for name in rpn.in_features]
        boxes, scores, levels = [], [], []
        for level, (anchors, logits, deltas) in enumerate(
            zip(anchors_of(rpn.anchor_generator, maps), *rpn.rpn_head(maps), strict=True)
        ):
            logits = logits[0].permute(1, 2, 0).flatten()  # (H * W * A)
            deltas = deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).flatten(0, 2)
            number = torch.sym_min(logits.shape[0], rpn.pre_nms_topk[False])
            best, places = logits.topk(number)
            scores.append(best)
            boxes.append(rpn.box2box_transform.apply_deltas(deltas[places], anchors[places]))
            levels.append(torch.full_like(places, level))
        of_all, best, groups = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        finite = of_all.isfinite().all(dim=1) & best.isfinite()
        of_all = clip(of_all, size)
        usable = ((of_all[:, 2:] - of_all[:, :2]) > rpn.min_box_size).all(dim=1) & finite
        of_all, best, groups = select(usable, of_all, best, groups)
        nms, limit = HardNMS(rpn.nms_thresh), rpn.post_nms_topk[False]
        keep, _ = suppress(nms, of_all, best, groups, len(boxes), size, limit)
        return of_all[keep]

    def _single_stage(
        self, features: Features, proposals: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads: StandardROIHeads = self.model.roi_heads
        maps = [features[name] for name in heads.box_in_features]
        x = heads.box_head(pool(heads.box_pooler, maps, proposals))
        logits, deltas = heads.box_predictor(x)
        predictor = heads.box_predictor
        return _best_of_classes(
            predictor.box2box_transform.apply_deltas(deltas, proposals),
            _probabilities(predictor, logits),
            size,
            predictor,
            self.nms,
        )

    def _cascade(
        self, features: Features, proposals: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads: CascadeROIHeads = self.model.roi_heads
        maps = [features[name] for name in heads.box_in_features]
        all_logits: list[Tensor] = []
        boxes = proposals
        for stage in range(heads.num_cascade_stages):
            if stage > 0:
                proposals = clip(_boxes_of(boxes, all_logits[-1][:, :-1].argmax(dim=1)), size)
            x = self._add_semantic(pool(heads.box_pooler, maps, proposals), features, proposals)
            logits, deltas = heads.box_predictor[stage](heads.box_head[stage](x))
            all_logits.append(logits.float())
            transform = heads.box_predictor[stage].box2box_transform
            boxes = transform.apply_deltas(deltas, proposals)
        predictor = heads.box_predictor[-1]
        if heads.average_logits:
            scores = _probabilities(predictor, torch.stack(all_logits).mean(dim=0))
        else:
            stages = map(_probabilities, heads.box_predictor, all_logits)
            scores = torch.stack([*stages]).mean(dim=0)
        return _best_of_classes(boxes, scores, size, predictor, self.nms)

    def _single_masks(self, features: Features, boxes: Tensor, classes: Tensor) -> Tensor:
        heads: StandardROIHeads = self.model.roi_heads
        maps = [features[name] for name in heads.mask_in_features]
        logits = heads.mask_head.layers(pool(heads.mask_pooler, maps, boxes))
        return _mask_of(logits, classes)

    def _cascade_masks(self, features: Features, boxes: Tensor, classes: Tensor) -> Tensor:
        heads: CascadeROIHeads = self.model.roi_heads
        maps = [features[name] for name in heads.mask_in_features]
        x = self._add_semantic(pool(heads.mask_pooler, maps, boxes), features, boxes)
        stages = heads._mask_logits(x, range(len(heads.mask_head)))
        return torch.stack([_mask_of(logits, classes) for logits in stages]).mean(dim=0)

    def _add_semantic(self, x: Tensor, features: Features, boxes: Tensor) -> Tensor:
        head = self.model.roi_heads.semantic_head
        if head is None:
            return x
        semantic = pool(head.pooler, [features[SEMANTIC]], boxes)
        return x + F.adaptive_avg_pool2d(semantic, (x.shape[2], x.shape[3]))


def _probabilities(predictor: FastRCNNOutputLayers, logits: Tensor) -> Tensor:
    """Maps logits (R, K + 1) to probabilities; the last column is the background's."""
    return logits.sigmoid() if predictor.use_sigmoid_ce else logits.softmax(dim=-1)


def _boxes_of(boxes: Tensor, classes: Tensor) -> Tensor:
    """Selects boxes (R, 4) of each row's class from (R, K * 4); boxes (R, 4) are kept."""
    if boxes.shape[1] == 4:
        return boxes
    places = classes[:, None, None].expand(-1, 1, 4)
    return boxes.unflatten(1, (-1, 4)).gather(1, places)[:, 0]


def _mask_of(logits: Tensor, classes: Tensor) -> Tensor:
    """Selects mask probabilities (N, M, M) of each row's class from logits (N, K or 1, M, M)."""
    if logits.shape[1] == 1:
        return logits[:, 0].sigmoid()
    places = classes[:, None, None, None].expand(-1, 1, logits.shape[2], logits.shape[3])
    return logits.gather(1, places)[:, 0].sigmoid()


def _best_of_classes(
    boxes: Tensor, scores: Tensor, size: Tensor, predictor: FastRCNNOutputLayers, nms: HardNMS
) -> tuple[Tensor, Tensor, Tensor]:
    """Does what `fast_rcnn_inference` does for one image."""
    finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    scores = scores[:, :-1]
    boxes = clip(boxes.unflatten(1, (-1, 4)), size)  # (R, K or 1, 4)
    found = (scores > predictor.test_score_thresh) & finite[:, None]
    rows, classes = found.nonzero().unbind(1)
    boxes = boxes[rows, classes] if boxes.shape[1] > 1 else boxes[rows, 0]
    keep, kept_scores = suppress(
        nms,
        boxes,
        scores[rows, classes],
        classes,
        scores.shape[1],
        size,
        predictor.test_topk_per_image,
    )
    return boxes[keep], kept_scores, classes[keep]
