"""Hybrid Task Cascade (arXiv 1901.07518): a cascade with interleaved boxes and masks."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import ImageList, Instances, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from vitadapter.layers.conv_norm_relu import conv_norm_relu
from vitadapter.modeling.image_record import ImageRecord

from .cascade import CascadeROIHeads

__all__ = [
    "BestProposalMatcher",
    "HTCMaskHead",
    "HTCROIHeads",
    "HybridTaskCascade",
    "rasterize_things",
]


class BestProposalMatcher(Matcher):
    """Detectron2's matcher, after which each ground truth also gets its nearest proposals.

    Detectron2's low-quality matches only label such a proposal as foreground, but leave it matched
    with the ground truth that it overlaps most; here it is matched with the one whose nearest
    proposal it is. A ground truth that no proposal overlaps by `min_quality` gets none.

    Args:
        thresholds, labels: as in Detectron2's matcher.
        min_quality: minimum IoU of a ground truth with its nearest proposals.

    Raises:
        ValueError: `min_quality` is not in (0, 1].
    """

    def __init__(
        self, thresholds: Sequence[float], labels: Sequence[int], *, min_quality: float
    ) -> None:
        if not 0 < min_quality <= 1:
            raise ValueError(f"min_quality must be in (0, 1], got {min_quality}")
        super().__init__(list(thresholds), list(labels), allow_low_quality_matches=False)
        self.min_quality = min_quality

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            match_quality_matrix: IoUs (M, N) of M ground truths with N proposals.

        Returns:
            Matched ground truths (N,) and labels (N,), as in Detectron2's matcher.
        """
        matches, labels = super().__call__(match_quality_matrix)
        if match_quality_matrix.numel() == 0:
            return matches, labels
        best = match_quality_matrix.max(dim=1, keepdim=True).values  # (M, 1)
        taken = (match_quality_matrix == best) & (best >= self.min_quality)
        # If it is the nearest proposal of several ground truths, the last one gets it.
        order = torch.arange(1, len(taken) + 1, device=taken.device)[:, None]
        taker = (taken * order).max(dim=0).values  # (N,), 0 for none
        matches = torch.where(taker > 0, taker - 1, matches)
        return matches, torch.where(taker > 0, labels.new_ones(()), labels)


class HTCMaskHead(MaskRCNNConvUpsampleHead):
    """Detectron2's mask head with an additional input from the head of the stage before.

    Args:
        input_shape: shape of the pooled features.
        num_classes: number of foreground classes.
        conv_dims: channels of the 3x3 convolutions and, last, of the upsampling.
        conv_norm: Detectron2's norm name or a callable.
        takes_previous: whether there is a stage before it.
        loss_weight: factor of the loss.
        vis_period: number of iterations between two pictures of the masks; 0 for none.

    Raises:
        ValueError: `conv_dims` has no 3x3 convolution, whose output the next stage needs.
    """

    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: Sequence[int],
        conv_norm: str | Callable[[int], nn.Module] = "",
        takes_previous: bool = True,
        loss_weight: float = 1.0,
        vis_period: int = 0,
    ) -> None:
        if len(conv_dims) < 2:
            raise ValueError(f"conv_dims needs a convolution and the upsampling, got {conv_dims}")
        super().__init__(
            input_shape,
            num_classes=num_classes,
            conv_dims=list(conv_dims),
            conv_norm=conv_norm,
            loss_weight=loss_weight,
            vis_period=vis_period,
        )
        self.conv_res = None
        if takes_previous:
            self.conv_res = conv_norm_relu(conv_dims[-2], input_shape.channels, 1, conv_norm)

    def features(self, x: Tensor, previous: Tensor | None = None) -> Tensor:
        """Computes features (R, C, H, W), before the upsampling.

        Args:
            x: pooled features (R, C, H, W).
            previous: the features of the stage before, if the head takes them.
        """
        if self.conv_res is not None and previous is not None:
            x = x + self.conv_res(previous)
        for conv in self.conv_norm_relus:
            x = conv(x)
        return x

    def predict(self, features: Tensor) -> Tensor:
        """Computes logits (R, num_classes, 2H, 2W) from the result of `features`."""
        return self.predictor(self.deconv_relu(self.deconv(features)))

    def layers(self, x: Tensor) -> Tensor:
        """Computes logits like `MaskRCNNConvUpsampleHead`, without a stage before."""
        return self.predict(self.features(x))


class HTCROIHeads(CascadeROIHeads):
    """A cascade whose box and mask branches are interleaved.

    - In training, a stage's mask head learns from the boxes that the stage has just refined, which
      are matched and sampled again.
    - A mask head adds the last features of the head before, after a convolution.

    The arguments are those of `CascadeROIHeads`; the `mask_heads` must be `HTCMaskHead`.
    """

    def _mask_proposals(
        self,
        sampled: list[Instances],
        refined: list[Instances],
        targets: list[Instances],
        stage: int,
    ) -> list[Instances]:
        del sampled
        return self._label_and_sample(refined, targets, stage)

    def _mask_logits(self, x: Tensor, stages: Sequence[int]) -> list[Tensor]:
        logits, previous = [], None
        for stage, head in enumerate(self.mask_head[: max(stages) + 1]):
            previous = head.features(x, previous)
            if stage in stages:
                logits.append(head.predict(previous))
        return logits


def rasterize_things(
    instances: Instances, *, stride: int, num_classes: int, background: int
) -> Tensor:
    """Draws a semantic map from instance masks, with smaller instances on top.

    Args:
        instances: the objects of one image, with "gt_classes" and "gt_masks", polygons or bitmasks.
        stride: the map has the label of every stride-th pixel in both directions.
        num_classes: number of thing classes, whose labels are their indexes.
        background: label of all other pixels.

    Returns:
        (ceil(H / stride), ceil(W / stride)) int64, on the CPU if the masks are polygons.

    Raises:
        ValueError: the class of an instance is not that of a thing, or there are no masks.
    """
    height, width = (-(-side // stride) for side in instances.image_size)
    if len(instances) == 0:
        return torch.full((height, width), background)
    if not instances.has("gt_masks"):
        raise ValueError("without a semantic map the semantic branch needs instance masks")
    if not 0 <= int(instances.gt_classes.min()) <= int(instances.gt_classes.max()) < num_classes:
        raise ValueError(
            f"classes must be in 0..{num_classes - 1}, got {instances.gt_classes.unique().tolist()}"
        )
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = torch.stack([_rasterize(m, stride, height, width) for m in masks.polygons])
    else:
        masks = masks.tensor[:, ::stride, ::stride]  # (N, H / stride, W / stride)
    labels = torch.full((height, width), background, device=masks.device)
    for i in masks.flatten(1).sum(dim=1).argsort(descending=True).tolist():
        labels[masks[i]] = int(instances.gt_classes[i])
    return labels


def _rasterize(polygons: Sequence[np.ndarray], stride: int, height: int, width: int) -> Tensor:
    # The first pixel of a cell becomes its centre.
    scaled = [(polygon - 0.5) / stride + 0.5 for polygon in polygons]
    return torch.from_numpy(polygons_to_bitmask(scaled, height, width))


def _subsample(sem_seg: Tensor, image_size: tuple[int, int], stride: int) -> Tensor:
    if tuple(sem_seg.shape) != tuple(image_size):
        raise ValueError(
            f"a semantic map must have its image's size, got {tuple(sem_seg.shape)} for "
            f"{tuple(image_size)}"
        )
    return sem_seg[::stride, ::stride]


class HybridTaskCascade(GeneralizedRCNN):
    """Detectron2's R-CNN with `HTCROIHeads`, which also learn a semantic map.

    The arguments are the same. Without a semantic head, only boxes and masks are learned.

    If all images of a batch have a semantic map of the data set ("sem_seg"), such as COCO-Stuff's,
    it contains the labels. If none has one, the labels are drawn from the instances' masks: the
    class index where a thing is, and elsewhere the last class of the semantic branch, which
    COCO-Stuff's maps do not use.
    """

    def forward(
        self, batched_inputs: Sequence[ImageRecord]
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: the images, in training with "instances" and, in all or none, "sem_seg".

        Returns:
            In training, the losses; in inference, what Detectron2's R-CNN returns.

        Raises:
            ValueError: only some images have a "sem_seg", or one has the wrong size.
        """
        if not self.training:
            return self.inference(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        images = self.preprocess_image(batched_inputs)
        sem_seg = None
        if self.roi_heads.semantic_head is not None:
            sem_seg = self._semantic_labels(batched_inputs, images).to(self.device)
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(images, features, targets)
        _, head_losses = self.roi_heads(images, features, proposals, targets, sem_seg)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return head_losses | losses

    def _semantic_labels(self, batched_inputs: Sequence[ImageRecord], images: ImageList) -> Tensor:
        """Returns labels (N, H / stride, W / stride), for the size H x W of the padded images."""
        with_map = sum("sem_seg" in x for x in batched_inputs)
        if with_map not in (0, len(batched_inputs)):
            raise ValueError(
                "either all images of a batch have a semantic map or none, "
                f"got {with_map} of {len(batched_inputs)}"
            )
        head = self.roi_heads.semantic_head
        stride = head.stride
        height, width = images.tensor.shape[-2:]
        labels = torch.full((len(images), height // stride, width // stride), head.ignore_value)
        for i, (x, size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
            image_labels = (
                _subsample(x["sem_seg"], size, stride) if with_map else self._things(x["instances"])
            )
            outside = (image_labels < 0) | (image_labels >= head.num_classes)
            wrong = image_labels[outside & (image_labels != head.ignore_value)]
            if len(wrong):
                raise ValueError(
                    f"semantic labels must be in 0..{head.num_classes - 1} or {head.ignore_value} "
                    f"(ignored), got {wrong.unique().tolist()[:5]} in "
                    f"{x.get('sem_seg_file_name', 'a map')}"
                )
            labels[i, : image_labels.shape[0], : image_labels.shape[1]] = image_labels
        return labels

    def _things(self, instances: Instances) -> Tensor:
        things, head = self.roi_heads.num_classes, self.roi_heads.semantic_head
        classes = head.num_classes
        if classes <= things:
            raise ValueError(
                f"without semantic maps the semantic branch needs a class for the background: "
                f"more than {things} classes, got {classes}"
            )
        return rasterize_things(
            instances, stride=head.stride, num_classes=things, background=classes - 1
        )
