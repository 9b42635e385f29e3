"""ATSS, GFL and Sparse R-CNN as functions of plain tensors."""

import torch
from torch import Tensor

from vitadapter.modeling.dense.detector import SingleAnchorDetector
from vitadapter.modeling.sparse_rcnn import SparseRCNN

from .graph import Graph
from .regions import anchors_of, clip, exportable, pool, select, suppress

__all__ = ["DenseGraph", "SparseRCNNGraph"]


class DenseGraph(Graph):
    """A `SingleAnchorDetector`."""

    outputs = ("boxes", "scores", "classes")
    model: SingleAnchorDetector

    def __init__(self, model: SingleAnchorDetector) -> None:
        super().__init__(model)
        self.nms = exportable(model.test_nms)

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detects objects; see `RCNNGraph.forward`."""
        model = self.model
        features = model.backbone(self.normalised(images, size))
        maps = [features[name] for name in model.head_in_features or features]
        predictions = model.head(maps)
        anchors = anchors_of(model.anchor_generator, maps)
        levels = [
            self._candidates(*[x[0].flatten(1).t().float() for x in level], anchors=of_level)
            for *level, of_level in zip(*predictions, anchors, strict=True)
        ]
        boxes, ranks, scores, classes = (torch.cat(kind) for kind in zip(*levels, strict=True))
        usable = boxes.isfinite().all(dim=1) & scores.isfinite()
        usable = usable & (ranks > model.test_score_thresh)
        boxes = clip(boxes, size)
        usable = usable & ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
        boxes, scores, classes = select(usable, boxes, scores, classes)
        limit = model.max_detections_per_image
        keep, scores = suppress(self.nms, boxes, scores, classes, model.num_classes, size, limit)
        return boxes[keep], scores, classes[keep]

    def _candidates(
        self, logits: Tensor, deltas: Tensor, quality: Tensor | None = None, *, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns boxes, class scores, scores and classes of the best candidates of one level."""
        number = torch.sym_min(logits.numel(), self.model.test_topk_candidates)
        ranks, places = logits.sigmoid().flatten().topk(number)
        rows, classes = places // logits.shape[1], places % logits.shape[1]
        scores = ranks if quality is None else ranks * quality[rows, 0].sigmoid()
        return self.model.head.decode(deltas[rows], anchors[rows]), ranks, scores, classes


class SparseRCNNGraph(Graph):
    """A `SparseRCNN`."""

    outputs = ("boxes", "scores", "classes")
    model: SparseRCNN

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detects objects; see `RCNNGraph.forward`."""
        model = self.model
        features = model.backbone(self.normalised(images, size))
        maps = [features[name] for name in model.head_in_features]
        centre, extent = model.init_proposal_boxes.weight.split(2, dim=1)
        boxes = torch.cat([centre - extent / 2, centre + extent / 2], dim=1)
        boxes = boxes * size.flip(0).repeat(2).to(boxes.dtype)
        proposals = model.init_proposal_features.weight[None]
        for stage in model.stages:
            logits, deltas, proposals = stage(proposals, pool(model.box_pooler, maps, boxes))
            boxes = model.box2box_transform.apply_deltas(deltas[0], boxes)
        logits = logits[0]
        usable = boxes.isfinite().all(dim=1) & logits.isfinite().all(dim=1)
        scores = logits.sigmoid().masked_fill(~usable[:, None], 0.0)
        number = min(model.max_detections_per_image, scores.numel())
        best, places = scores.flatten().topk(number)
        return boxes[places // scores.shape[1]], best, places % scores.shape[1]
