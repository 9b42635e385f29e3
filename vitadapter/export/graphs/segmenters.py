"""Semantic segmenters and Mask2Former as functions of plain tensors."""

from torch import Tensor

from vitadapter.modeling.mask2former import Mask2Former
from vitadapter.modeling.semantic import SemanticSegmentor

from .graph import Graph

__all__ = ["Mask2FormerGraph", "SegmenterGraph"]


class SegmenterGraph(Graph):
    """A `SemanticSegmentor`; sliding windows are the caller's."""

    takes_batches = True
    outputs = ("sem_seg",)
    model: SemanticSegmentor

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor]:
        """Maps images (see `Graph.normalised`) to class logits (B, K, H, W)."""
        features = self.model.backbone(self.normalised(images, size))
        logits, _ = self.model.sem_seg_head(features)
        return (logits,)


class Mask2FormerGraph(Graph):
    """A `Mask2Former`; its three kinds of predictions are made of the queries by the caller."""

    takes_batches = True
    outputs = ("class_logits", "mask_logits")
    model: Mask2Former

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Maps images to the logits of each query.

        Args:
            images, size: see `Graph.normalised`.

        Returns:
            (B, Q, K + 1) for the classes, "no object" last, and (B, Q, H / 4, W / 4) for the masks.
        """
        features = self.model.backbone(self.normalised(images, size))
        (prediction,) = self.model.sem_seg_head(features)
        return prediction.class_logits.float(), prediction.mask_logits.float()
