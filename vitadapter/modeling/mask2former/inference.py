"""From classes and masks of queries to semantic, instance and panoptic segmentation."""

from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from detectron2.structures import BitMasks, Instances
from torch import Tensor

from .transformer_decoder import MaskPrediction

__all__ = [
    "InstanceInference",
    "PanopticInference",
    "SegmentInfo",
    "first_classes",
    "semantic_scores",
]


class SegmentInfo(TypedDict):
    """A segment of a panoptic map, in Detectron2's format."""

    id: int
    isthing: bool
    category_id: int
    score: float


def first_classes(num_things: int) -> list[int]:
    """Returns the indexes of things, if these are the first classes; for configs."""
    return list(range(num_things))


def semantic_scores(prediction: MaskPrediction) -> Tensor:
    """Computes class probabilities times mask probabilities, summed over the queries.

    Args:
        prediction: class logits (B, Q, K + 1) and mask logits (B, Q, h, w).

    Returns:
        (B, K, h, w), not negative; they do not always add up to 1.
    """
    classes = prediction.class_logits.softmax(-1)[..., :-1]
    masks = prediction.mask_logits.sigmoid()
    # In half precision, the sums over the queries would be equal for several classes.
    with torch.autocast(masks.device.type, enabled=False):
        return torch.einsum("bqk,bqhw->bkhw", classes, masks)


class InstanceInference:
    """Selects the best pairs of query and class; a query may be an instance of several classes.

    Args:
        thing_classes: classes that have instances; None for all.
        max_per_image: number of pairs that are selected, including those of other classes.

    Raises:
        ValueError: `max_per_image` is not positive.
    """

    def __init__(
        self, *, thing_classes: Sequence[int] | None = None, max_per_image: int = 100
    ) -> None:
        if max_per_image < 1:
            raise ValueError(f"max_per_image must be at least 1, got {max_per_image}")
        self.thing_classes = None if thing_classes is None else list(thing_classes)
        self.max_per_image = max_per_image

    def __call__(
        self, class_logits: Tensor, mask_logits: Tensor, resize: Callable[[Tensor], Tensor]
    ) -> Instances:
        """
        Args:
            class_logits: (Q, K + 1) of one image.
            mask_logits: (Q, h, w).
            resize: resizes mask logits (n, h, w) to the size of the output (n, height, width).

        Returns:
            Instances in the order of falling class probability, with `pred_masks` (N, height,
            width), bool, `pred_boxes` around them, `pred_classes`, and `scores`: class probability
            times mean probability of the mask's pixels.
        """
        probabilities = class_logits.softmax(-1)[:, :-1]
        num_classes = probabilities.shape[1]
        num_pairs = min(self.max_per_image, probabilities.numel())
        scores, pairs = probabilities.flatten().topk(num_pairs)
        queries, classes = pairs // num_classes, pairs % num_classes
        if self.thing_classes is not None:
            things = torch.isin(classes, classes.new_tensor(self.thing_classes))
            scores, queries, classes = scores[things], queries[things], classes[things]
        # A query with several classes is resized only once. Queries are resized one by one, since a
        # hundred maps of a large image do not fit into memory.
        queries, index = queries.unique(return_inverse=True)
        size = resize(mask_logits[:0]).shape[1:]
        masks = torch.zeros(len(queries), *size, dtype=torch.bool, device=mask_logits.device)
        inside = scores.new_zeros(len(queries))
        for i, query in enumerate(queries.tolist()):
            logits = resize(mask_logits[query][None])[0]
            masks[i] = logits > 0
            inside[i] = (logits.sigmoid() * masks[i]).sum() / (masks[i].sum() + 1e-6)
        instances = Instances((size[0], size[1]))
        instances.pred_masks = masks[index]
        instances.pred_boxes = BitMasks(masks).get_bounding_boxes()[index].to(masks.device)
        instances.scores = scores * inside[index]
        instances.pred_classes = classes
        return instances


def _claims(
    scores: Tensor, mask_logits: Tensor, resize: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns each query's own mask (Q, height, width), and each pixel's best query (height,
    width).

    Queries are resized one by one: all maps of a large image would not fit into memory.
    """
    size = resize(mask_logits[:0]).shape[1:]
    own = torch.zeros(len(scores), *size, dtype=torch.bool, device=scores.device)
    highest = scores.new_zeros(size)
    winners = torch.full(size, -1, device=scores.device)
    for i, score in enumerate(scores):
        probabilities = resize(mask_logits[i][None])[0].sigmoid()
        own[i] = probabilities >= 0.5
        claim = score * probabilities
        winners[claim > highest] = i
        highest = torch.maximum(highest, claim)
    return own, winners


class PanopticInference:
    """Gives every pixel to the query with the highest score, and drops queries that lose most.

    Args:
        thing_classes: classes whose segments are objects; segments of each other class are merged.
        score_threshold: probability that a query's class must exceed.
        overlap_threshold: fraction of its own mask that a query must win to be kept.

    Raises:
        ValueError: a threshold is outside [0, 1].
    """

    def __init__(
        self,
        *,
        thing_classes: Sequence[int],
        score_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
    ) -> None:
        if not 0 <= score_threshold <= 1 or not 0 <= overlap_threshold <= 1:
            raise ValueError(
                f"thresholds must lie in [0, 1], got {score_threshold=}, {overlap_threshold=}"
            )
        self.thing_classes = frozenset(thing_classes)
        self.score_threshold = score_threshold
        self.overlap_threshold = overlap_threshold

    def confident(self, class_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Finds the queries whose class is probable enough.

        Args:
            class_logits: (Q, K + 1), of which the last one means no object.

        Returns:
            Scores (Q,), classes (Q,), and which queries (Q,), bool, may be segments.
        """
        scores, classes = class_logits.softmax(-1).max(-1)
        return (
            scores,
            classes,
            (classes != class_logits.shape[1] - 1) & (scores > self.score_threshold),
        )

    def __call__(
        self, class_logits: Tensor, mask_logits: Tensor, resize: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, list[SegmentInfo]]:
        """Takes the arguments of `InstanceInference`.

        Returns:
            A map of segment ids (height, width), int32, 0 where there is no segment; and the
            segments.
        """
        scores, classes, kept = self.confident(class_logits)
        scores, classes = scores[kept], classes[kept]
        own, winners = _claims(scores, mask_logits[kept], resize)
        segment_ids = torch.zeros(own.shape[1:], dtype=torch.int32, device=own.device)
        segments: list[SegmentInfo] = []
        stuff: dict[int, int] = {}
        for i, (score, category) in enumerate(zip(scores.tolist(), classes.tolist(), strict=True)):
            won = winners == i
            mask = won & own[i]
            areas = torch.stack([own[i].sum(), won.sum(), mask.sum()]).tolist()
            if min(areas) == 0 or areas[1] / areas[0] < self.overlap_threshold:
                continue
            if category in stuff:
                segment_ids[mask] = stuff[category]
                continue
            is_thing = category in self.thing_classes
            segments.append(
                SegmentInfo(
                    id=len(segments) + 1, isthing=is_thing, category_id=category, score=score
                )
            )
            segment_ids[mask] = segments[-1]["id"]
            if not is_thing:
                stuff[category] = segments[-1]["id"]
        return segment_ids, segments
