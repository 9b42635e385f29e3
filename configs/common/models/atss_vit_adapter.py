"""ATSS on ViT-Adapter-T; other sizes replace `model.backbone.bottom_up`."""

from detectron2.config import LazyCall as L
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN
from detectron2.modeling.box_regression import Box2BoxTransform

from vitadapter.layers.nms import HardNMS
from vitadapter.modeling.backbone import LastLevelConvs
from vitadapter.modeling.dense import ATSSHead, ATSSMatcher, SingleAnchorDetector

from ..pixels import imagenet
from .vit_adapter import vit_adapter_tiny

model = L(SingleAnchorDetector)(
    backbone=L(FPN)(
        bottom_up=vit_adapter_tiny,
        in_features=["res3", "res4", "res5"],
        out_channels=256,
        top_block=L(LastLevelConvs)(
            in_channels="${..out_channels}", out_channels="${..out_channels}", in_feature="p5"
        ),
    ),
    head=L(ATSSHead)(
        in_channels="${..backbone.out_channels}",
        num_levels=5,
        num_classes="${..num_classes}",
        conv_dims=[256, 256, 256, 256],
        norm="GN",
        box2box_transform=L(Box2BoxTransform)(weights=(10.0, 10.0, 5.0, 5.0)),
        focal_loss_alpha=0.25,
        focal_loss_gamma=2.0,
        box_loss_weight=2.0,
    ),
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[[64], [128], [256], [512], [1024]],
        aspect_ratios=[1.0],
        strides=[8, 16, 32, 64, 128],
        offset=0.0,
    ),
    anchor_matcher=L(ATSSMatcher)(topk=9),
    num_classes="${dataset.num_classes}",
    test_score_thresh=0.05,
    test_topk_candidates=1000,
    test_nms=L(HardNMS)(iou_threshold=0.6),
    max_detections_per_image=100,
    **imagenet,
    input_format="RGB",
)
