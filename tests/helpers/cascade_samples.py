"""Cascade and HTC heads, at the official or a tiny size, and what they are fed with."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, Instances

from vitadapter.modeling.roi_heads import (
    BestProposalMatcher,
    CascadeROIHeads,
    FusedSemanticHead,
    HTCMaskHead,
    HTCROIHeads,
)

LEVELS = ("p2", "p3", "p4", "p5", "p6")
STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
IMAGE = (128, 160)  # height, width


def _pooler(size: int, strides: Sequence[int]) -> ROIPooler:
    return ROIPooler(size, [1 / s for s in strides], sampling_ratio=0, pooler_type="ROIAlignV2")


def box_arguments(
    dim: int, fc_dim: int, num_classes: int, agnostic: bool, norm: str, score_thresh: float
) -> dict[str, object]:
    """Arguments that ours and Detectron2's cascade share."""
    pooled = ShapeSpec(channels=dim, height=7, width=7)
    return {
        "num_classes": num_classes,
        "batch_size_per_image": 512,
        "positive_fraction": 0.25,
        "box_in_features": LEVELS[:4],
        "box_pooler": _pooler(7, (4, 8, 16, 32)),
        "box_heads": [
            FastRCNNConvFCHead(pooled, conv_dims=[dim] * 4, fc_dims=[fc_dim], conv_norm=norm)
            for _ in STDS
        ],
        "box_predictors": [
            FastRCNNOutputLayers(
                ShapeSpec(channels=fc_dim),
                box2box_transform=Box2BoxTransform([1 / std for std in stds]),
                num_classes=num_classes,
                cls_agnostic_bbox_reg=agnostic,
                smooth_l1_beta=1.0,
                test_score_thresh=score_thresh,
            )
            for stds in STDS
        ],
        "proposal_matchers": [
            BestProposalMatcher([iou], [0, 1], min_quality=iou) for iou in (0.5, 0.6, 0.7)
        ],
    }


def _build(
    *,
    kind: str,
    dim: int = 8,
    fc_dim: int = 16,
    num_classes: int = 4,
    agnostic: bool = True,
    norm: str = "",
    score_thresh: float = 0.0,
    masks: bool = True,
    **others: object,
) -> CascadeROIHeads:
    arguments = box_arguments(dim, fc_dim, num_classes, agnostic, norm, score_thresh)
    mask_arguments = {"num_classes": num_classes, "conv_dims": [dim] * 5}
    if masks:
        arguments |= {"mask_in_features": LEVELS[:4], "mask_pooler": _pooler(14, (4, 8, 16, 32))}
    if kind == "htc":
        arguments |= {
            "mask_heads": [
                HTCMaskHead(ShapeSpec(channels=dim), takes_previous=stage > 0, **mask_arguments)
                for stage in range(3)
            ],
            "semantic_head": build_semantic_head(dim, conv_dim=dim),
            "average_logits": True,
        }
        return HTCROIHeads(**arguments | others)
    if masks:
        arguments["mask_heads"] = [
            MaskRCNNConvUpsampleHead(ShapeSpec(channels=dim), **mask_arguments) for _ in range(3)
        ]
    return CascadeROIHeads(**arguments, **others)


def build_semantic_head(in_channels: int, **arguments: object) -> FusedSemanticHead:
    """Of all levels, unless the arguments say otherwise."""
    return FusedSemanticHead(
        in_channels, **{"in_features": LEVELS, "pooler": _pooler(14, (8,))} | arguments
    )


def build_htc(**arguments: object) -> HTCROIHeads:
    """See :func:`_build`."""
    return _build(kind="htc", **arguments)


def build_cascade(**arguments: object) -> CascadeROIHeads:
    """See :func:`_build`."""
    return _build(kind="cascade", **arguments)


def make_features(dim: int = 8) -> dict[str, torch.Tensor]:
    """Of a batch of two images."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(2, dim, max(1, 128 // stride), max(1, 160 // stride), generator=generator)
        for name, stride in zip(LEVELS, (4, 8, 16, 32, 64), strict=True)
    }


def proposals_of(boxes: Sequence[Sequence[Sequence[float]]]) -> list[Instances]:
    """Of each image, from (x0, y0, x1, y1)."""
    return [
        Instances(IMAGE, proposal_boxes=Boxes(torch.tensor(b, dtype=torch.float32).view(-1, 4)))
        for b in boxes
    ]


def targets_of(
    boxes: Sequence[Sequence[Sequence[float]]], classes: Sequence[Sequence[int]]
) -> list[Instances]:
    """Of each image, with masks that fill the boxes."""
    targets = []
    for image_boxes, image_classes in zip(boxes, classes, strict=True):
        masks = np.zeros((len(image_boxes), *IMAGE), dtype=bool)
        for mask, (x0, y0, x1, y1) in zip(masks, image_boxes, strict=True):
            mask[max(0, int(y0)) : int(y1), max(0, int(x0)) : int(x1)] = True
        target = Instances(IMAGE)
        target.gt_boxes = Boxes(torch.tensor(image_boxes, dtype=torch.float32).view(-1, 4))
        target.gt_classes = torch.tensor(image_classes, dtype=torch.int64)
        target.gt_masks = BitMasks(torch.from_numpy(masks))
        targets.append(target)
    return targets
