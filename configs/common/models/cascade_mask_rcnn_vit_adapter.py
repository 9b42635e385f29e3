"""Cascade Mask R-CNN on ViT-Adapter-T with the official heads: three stages, a mask head each."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
)

from vitadapter.modeling.roi_heads import CascadeROIHeads

from .mask_rcnn_vit_adapter import model

_rpn = model.proposal_generator
_rpn.post_nms_topk = (2000, 1000)
_rpn.anchor_boundary_thresh = 0
_rpn.smooth_l1_beta = 1 / 9

_single = model.roi_heads
model.roi_heads = L(CascadeROIHeads)(
    num_classes="${dataset.num_classes}",
    batch_size_per_image=512,
    positive_fraction=0.25,
    box_in_features=_single.box_in_features,
    box_pooler=_single.box_pooler,
    box_heads=[
        L(FastRCNNConvFCHead)(
            input_shape=ShapeSpec(channels=256, height=7, width=7),
            conv_dims=[256, 256, 256, 256],
            fc_dims=[1024],
            conv_norm="SyncBN",
        )
        for _ in range(3)
    ],
    box_predictors=[
        L(FastRCNNOutputLayers)(
            input_shape=ShapeSpec(channels=1024),
            num_classes="${...num_classes}",
            test_score_thresh=0.05,
            test_nms_thresh=0.5,
            test_topk_per_image=100,
            box2box_transform=L(Box2BoxTransform)(
                weights=(1 / std, 1 / std, 1 / size_std, 1 / size_std)
            ),
            cls_agnostic_bbox_reg=False,
            box_reg_loss_type="giou",
            loss_weight={"loss_box_reg": 10.0},
        )
        for std, size_std in [(0.1, 0.2), (0.05, 0.1), (0.033, 0.067)]
    ],
    proposal_matchers=[
        L(Matcher)(thresholds=[iou], labels=[0, 1], allow_low_quality_matches=False)
        for iou in (0.5, 0.6, 0.7)
    ],
    mask_in_features=_single.mask_in_features,
    mask_pooler=_single.mask_pooler,
    mask_heads=[
        L(MaskRCNNConvUpsampleHead)(
            input_shape=ShapeSpec(channels=256, height=14, width=14),
            num_classes="${...num_classes}",
            conv_dims=[256, 256, 256, 256, 256],
        )
        for _ in range(3)
    ],
    stage_loss_weights=(1.0, 0.5, 0.25),
    average_logits=True,
    nms=None,
)
