"""Sparse R-CNN on ViT-Adapter-T: 300 proposals, six stages."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import FPN
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler

from vitadapter.modeling.sparse_rcnn import (
    DynamicHead,
    HungarianMatcher,
    SetCriterion,
    SparseRCNN,
)

from ..pixels import imagenet
from .vit_adapter import vit_adapter_tiny

model = L(SparseRCNN)(
    backbone=L(FPN)(
        bottom_up=vit_adapter_tiny,
        in_features=["res2", "res3", "res4", "res5"],
        out_channels=256,
    ),
    head_in_features=["p2", "p3", "p4", "p5"],
    box_pooler=L(ROIPooler)(
        output_size=7,
        scales=(1 / 4, 1 / 8, 1 / 16, 1 / 32),
        sampling_ratio=2,
        pooler_type="ROIAlignV2",
    ),
    box_heads=[
        L(DynamicHead)(
            num_classes="${dataset.num_classes}",
            feature_dim="${model.feature_dim}",
            num_heads=8,
            feedforward_dim=2048,
            dynamic_dim=64,
            num_cls_fcs=1,
            num_reg_fcs=3,
        )
        for _ in range(6)
    ],
    num_proposals=300,
    feature_dim="${.backbone.out_channels}",
    box2box_transform=L(Box2BoxTransform)(weights=(2.0, 2.0, 1.0, 1.0)),
    criterion=L(SetCriterion)(
        matcher=L(HungarianMatcher)(cls_weight=2.0, box_weight=5.0, giou_weight=2.0)
    ),
    max_detections_per_image=300,
    **imagenet,
    input_format="RGB",
)
