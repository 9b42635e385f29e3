"""What ATSS and GFL share: a head, and a detector with one square anchor per location."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from detectron2.modeling import Backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from vitadapter.layers.conv_norm_relu import conv_norm_relu
from vitadapter.layers.nms import NMS, suppress_detections

__all__ = ["DenseHead", "SingleAnchorDetector", "count_samples", "per_anchor", "sum_by_level"]

_PRIOR_PROB = 0.01  # the initial class scores


def count_samples(positive: Tensor) -> Tensor:
    """Counts the positive anchors, with an image that has none counting as one.

    A loss over all anchors is divided by this, as in the official release: for a batch without
    objects, it gives the mean of the images' losses, not their sum.

    Args:
        positive: (N, R).

    Returns:
        A scalar (), at least 1.
    """
    return positive.sum(1).clamp(min=1).sum()


def sum_by_level(loss: Tensor, sizes: Sequence[int], where: Tensor | None = None) -> Tensor:
    """Sums a loss per anchor over the images and over the anchors of each level.

    Args:
        loss: (N, R), or (n,) for the anchors that `where` selects.
        sizes: number of anchors of each level, R in total.
        where: (N, R), of which n are True, or None.

    Returns:
        (L,), connected to the predictions even if nothing is summed, because distributed training
        fails if a parameter has no gradient.
    """
    if where is not None:
        loss = torch.zeros_like(where, dtype=loss.dtype).masked_scatter(where, loss)
    return torch.stack([level.sum() for level in loss.split(list(sizes), dim=1)])


def _tower(
    in_channels: int, conv_dims: Sequence[int], norm: str | Callable[[int], nn.Module]
) -> nn.Sequential:
    widths = pairwise([in_channels, *conv_dims])
    return nn.Sequential(*(conv_norm_relu(i, o, 3, norm) for i, o in widths))


def per_anchor(predictions: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Rearranges predictions (N, D, H_l, W_l) to (N, R_l, D), in float32."""
    return [
        [level.flatten(2).transpose(1, 2).float() for level in levels] for levels in predictions
    ]


class DenseHead(nn.Module, ABC):
    """Predicts class logits and boxes for one anchor per location, on every pyramid level.

    It has two towers and a scale per level. There is no bias before a norm, as in the official
    heads and unlike in Detectron2's `RetinaNetHead`. Subclasses define what the predictions mean:
    how boxes are decoded and what the losses are. There are N images, K classes and L levels of R_l
    anchors, R in total.

    Args:
        in_channels: channels of every level.
        num_levels: number of pyramid levels.
        num_classes: number of foreground classes.
        conv_dims: channels of the convolutions of each tower.
        norm: the norm after each of them; Detectron2's name or a callable.
        box_dim: how many numbers describe a box.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_levels: int,
        num_classes: int,
        conv_dims: Sequence[int],
        norm: str | Callable[[int], nn.Module],
        box_dim: int = 4,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_subnet = _tower(in_channels, conv_dims, norm)
        self.bbox_subnet = _tower(in_channels, conv_dims, norm)
        channels = [in_channels, *conv_dims][-1]
        self.cls_score = nn.Conv2d(channels, num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, box_dim, kernel_size=3, padding=1)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in range(num_levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        bias = -math.log((1 - _PRIOR_PROB) / _PRIOR_PROB)
        nn.init.constant_(self.cls_score.get_parameter("bias"), bias)

    def forward(self, features: Sequence[Tensor]) -> list[list[Tensor]]:
        """
        Args:
            features: for each level, (B, in_channels, H_l, W_l).

        Returns:
            For each kind of prediction (logits, boxes, ...), one (B, D, H_l, W_l) per level.
        """
        levels = [
            self.predict(feature, scale)
            for feature, scale in zip(features, self.scales, strict=True)
        ]
        return [list(kind) for kind in zip(*levels, strict=True)]

    def predict(self, feature: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        """Returns all predictions of one level, logits and boxes first."""
        logits = self.cls_score(self.cls_subnet(feature))
        return logits, self.predict_boxes(self.bbox_subnet(feature), scale)

    def predict_boxes(self, feature: Tensor, scale: Tensor) -> Tensor:
        """Predicts boxes (B, box_dim, H, W) from the features of the box tower."""
        # In half precision, the exponential of a box's size would be off by pixels.
        return (self.bbox_pred(feature) * scale).float()

    def check_anchors(self, anchor_generator: DefaultAnchorGenerator) -> None:
        """Raises ValueError unless there is one anchor per location."""
        if set(anchor_generator.num_anchors) != {1}:
            raise ValueError(
                "anchor_generator must make one anchor per location, got "
                f"{anchor_generator.num_anchors} on its levels"
            )

    @abstractmethod
    def losses(
        self,
        anchors: Sequence[Boxes],
        predictions: Sequence[list[Tensor]],
        gt_labels: Tensor,
        gt_boxes: Tensor,
    ) -> dict[str, Tensor]:
        """Computes the losses of each level.

        Args:
            anchors: anchors of each level.
            predictions: for each kind, one (N, R_l, D) per level, in float32.
            gt_labels: classes (N, R), K for background, -1 for anchors without a loss.
            gt_boxes: (N, R, 4) boxes to predict, for anchors that have one.

        Returns:
            (L,) for each loss, by name.
        """

    @abstractmethod
    def decode(self, box_predictions: Tensor, anchors: Tensor) -> Tensor:
        """Decodes n predictions of the head, with their anchors (n, 4), to boxes (n, 4)."""


class SingleAnchorDetector(DenseDetector):
    """A dense detector with one anchor per location, whose head defines what is predicted.

    Args:
        backbone: the feature pyramid.
        head: predicts from the features, decodes boxes and computes the losses, like `ATSSHead`.
        head_in_features: names of the features that are used; None for all.
        anchor_generator: makes one anchor per location.
        anchor_matcher: maps anchors of each level and ground-truth boxes to (R,) indexes, -1 for
            background.
        num_classes: number of foreground classes.
        test_score_thresh: only classes with a higher score become candidates.
        test_topk_candidates: maximum number of candidates per level.
        test_nms: how overlapping candidates are suppressed.
        max_detections_per_image: maximum number of detections.
        pixel_mean, pixel_std: mean and standard deviation of the input's channels.
        input_format: channel order of the input, for the code that reads the images.

    Raises:
        ValueError: the head does not support the anchors, for example several per location.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: DenseHead,
        head_in_features: Sequence[str] | None = None,
        anchor_generator: DefaultAnchorGenerator,
        anchor_matcher: Callable[[Sequence[Boxes], Boxes], Tensor],
        num_classes: int,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms: NMS,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str | None = None,
    ) -> None:
        super().__init__(
            backbone,
            head,
            None if head_in_features is None else list(head_in_features),
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
        head.check_anchors(anchor_generator)
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.num_classes = num_classes
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms = test_nms
        self.max_detections_per_image = max_detections_per_image
        self.input_format = input_format

    def forward_training(
        self,
        images: ImageList,
        features: Sequence[Tensor],
        predictions: Sequence[Sequence[Tensor]],
        gt_instances: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """Returns the losses by name, summed over the levels; see `DenseDetector`."""
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances, images.image_sizes)
        losses = self.head.losses(anchors, per_anchor(predictions), gt_labels, gt_boxes)
        return {name: loss.sum() for name, loss in losses.items()}

    @torch.no_grad()
    def label_anchors(
        self,
        anchors: Sequence[Boxes],
        gt_instances: Sequence[Instances],
        image_sizes: Sequence[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        """Determines what each anchor should predict.

        Anchors whose centre lies in padding that comes only from the batch have no loss.

        Args:
            anchors: anchors of each level.
            gt_instances: ground truth of each image.
            image_sizes: (height, width) of each image without padding.

        Returns:
            `gt_labels` and `gt_boxes` as in `DenseHead.losses`.
        """
        labels, boxes = [], []
        for instances, image_size in zip(gt_instances, image_sizes, strict=True):
            usable_by_level = [self._usable(level, image_size) for level in anchors]
            kept = [level[mask] for level, mask in zip(anchors, usable_by_level, strict=True)]
            matched = self.anchor_matcher(kept, instances.gt_boxes)
            usable = torch.cat(usable_by_level)
            gt_boxes = instances.gt_boxes.tensor.new_zeros(len(usable), 4)
            gt_labels = instances.gt_classes.new_full((len(usable),), -1)
            gt_labels[usable] = self.num_classes
            positive = usable.nonzero().squeeze(1)[matched >= 0]
            matched = matched[matched >= 0]
            gt_labels[positive] = instances.gt_classes[matched]
            gt_boxes[positive] = instances.gt_boxes.tensor[matched]
            labels.append(gt_labels)
            boxes.append(gt_boxes)
        return torch.stack(labels), torch.stack(boxes)

    def _usable(self, anchors: Boxes, image_size: tuple[int, int]) -> Tensor:
        """Whether each anchor's centre (R_l,) lies in the image or in the padding it has alone."""
        divisor = max(self.backbone.size_divisibility, 1)
        height, width = (-(-side // divisor) * divisor for side in image_size)
        x, y = anchors.get_centers().unbind(1)
        return (x < width) & (y < height)

    def forward_inference(
        self,
        images: ImageList,
        features: Sequence[Tensor],
        predictions: Sequence[Sequence[Tensor]],
    ) -> list[Instances]:
        """Returns the detections of each image; see `DenseDetector`."""
        anchors = self.anchor_generator(features)
        predictions = per_anchor(predictions)
        return [
            self.inference_single_image(
                anchors, [[level[i] for level in kind] for kind in predictions], image_size
            )
            for i, image_size in enumerate(images.image_sizes)
        ]

    def inference_single_image(
        self,
        anchors: Sequence[Boxes],
        predictions: Sequence[Sequence[Tensor]],
        image_size: tuple[int, int],
    ) -> Instances:
        """
        Args:
            anchors: anchors of each level.
            predictions: for each kind, one (R_l, D) per level.
            image_size: (height, width), to which boxes are clipped.
        """
        levels = [self._candidates(*level) for level in zip(anchors, *predictions, strict=True)]
        boxes, scores, classes = (torch.cat(kind) for kind in zip(*levels, strict=True))
        finite = boxes.isfinite().all(1) & scores.isfinite()
        return suppress_detections(
            Boxes(boxes[finite]),
            scores[finite],
            classes[finite],
            image_size,
            self.test_nms,
            self.max_detections_per_image,
        )

    def _candidates(
        self,
        anchors: Boxes,
        logits: Tensor,
        box_predictions: Tensor,
        quality_logits: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns boxes (n, 4), scores (n,) and classes (n,) of one level.

        As in the official release, the class score alone decides what becomes a candidate.
        """
        scores = logits.sigmoid()
        found = scores > self.test_score_thresh
        scores = scores[found]
        scores, best = scores.topk(min(self.test_topk_candidates, len(scores)))
        indexes, classes = found.nonzero()[best].unbind(1)
        if quality_logits is not None:
            scores = scores * quality_logits[indexes, 0].sigmoid()
        return self.head.decode(box_predictions[indexes], anchors.tensor[indexes]), scores, classes
