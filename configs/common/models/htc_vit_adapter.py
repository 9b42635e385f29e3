"""Hybrid Task Cascade on ViT-Adapter-T with the official heads and Soft-NMS."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler

from vitadapter.layers.soft_nms import LinearDecay, SoftNMS
from vitadapter.modeling.roi_heads import (
    BestProposalMatcher,
    FusedSemanticHead,
    HTCMaskHead,
    HTCROIHeads,
    HybridTaskCascade,
)

from .cascade_mask_rcnn_vit_adapter import model

model._target_ = HybridTaskCascade
model.roi_heads._target_ = HTCROIHeads
model.roi_heads.nms = L(SoftNMS)(decay=L(LinearDecay)(iou_threshold=0.5), min_score=0.001)
for _box_head in model.roi_heads.box_heads:
    _box_head.conv_norm = ""
for _predictor in model.roi_heads.box_predictors:
    _predictor.update(
        cls_agnostic_bbox_reg=True,
        box_reg_loss_type="smooth_l1",
        smooth_l1_beta=1.0,
        loss_weight=1.0,
        test_score_thresh=0.001,
    )
model.roi_heads.proposal_matchers = [
    L(BestProposalMatcher)(thresholds=[iou], labels=[0, 1], min_quality=iou)
    for iou in (0.5, 0.6, 0.7)
]
model.roi_heads.mask_heads = [
    L(HTCMaskHead)(
        input_shape=ShapeSpec(channels=256, height=14, width=14),
        num_classes="${...num_classes}",
        conv_dims=[256, 256, 256, 256, 256],
        takes_previous=stage > 0,
    )
    for stage in range(3)
]
model.roi_heads.semantic_head = L(FusedSemanticHead)(
    in_channels=256,
    in_features=["p2", "p3", "p4", "p5", "p6"],
    pooler=L(ROIPooler)(
        output_size=14, scales=(1.0 / 8,), sampling_ratio=0, pooler_type="ROIAlignV2"
    ),
    fusion_level=1,
    stride=8,
    num_convs=4,
    conv_dim=256,
    num_classes=183,
    ignore_value=255,
    loss_weight=0.2,
)
