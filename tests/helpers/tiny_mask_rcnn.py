"""A Mask R-CNN of Detectron2's own parts, on our shared bases, that trains in a blink."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from fvcore.common.param_scheduler import LinearParamScheduler

from vitadapter.model_zoo import get_config

model = L(GeneralizedRCNN)(
    backbone=L(FPN)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=8, norm="BN"),
            stages=[
                L(ResNet.make_stage)(
                    block_class=BasicBlock,
                    num_blocks=1,
                    in_channels=8,
                    out_channels=out_channels,
                    stride=stride,
                    norm="BN",
                )
                for stride, out_channels in ((1, 8), (2, 16))
            ],
            out_features=["res2", "res3"],
        ),
        in_features=["res2", "res3"],
        out_channels=8,
    ),
    proposal_generator=L(RPN)(
        in_features=["p2", "p3"],
        head=L(StandardRPNHead)(in_channels=8, num_anchors=1),
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[16], [32]], aspect_ratios=[1.0], strides=[4, 8], offset=0.0
        ),
        anchor_matcher=L(Matcher)(
            thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=10000,
        positive_fraction=1.0,
        pre_nms_topk=(50, 50),
        post_nms_topk=(16, 16),
        nms_thresh=0.7,
    ),
    roi_heads=L(StandardROIHeads)(
        num_classes="${dataset.num_classes}",
        batch_size_per_image=10000,
        positive_fraction=1.0,
        proposal_matcher=L(Matcher)(
            thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False
        ),
        box_in_features=["p2", "p3"],
        box_pooler=L(ROIPooler)(
            output_size=3, scales=(1 / 4, 1 / 8), sampling_ratio=1, pooler_type="ROIAlignV2"
        ),
        box_head=L(FastRCNNConvFCHead)(
            input_shape=L(ShapeSpec)(channels=8, height=3, width=3), conv_dims=[], fc_dims=[16]
        ),
        box_predictor=L(FastRCNNOutputLayers)(
            input_shape=L(ShapeSpec)(channels=16),
            test_score_thresh=0.01,
            box2box_transform=L(Box2BoxTransform)(weights=(10, 10, 5, 5)),
            num_classes="${..num_classes}",
        ),
        mask_in_features=["p2", "p3"],
        mask_pooler=L(ROIPooler)(
            output_size=4, scales=(1 / 4, 1 / 8), sampling_ratio=1, pooler_type="ROIAlignV2"
        ),
        mask_head=L(MaskRCNNConvUpsampleHead)(
            input_shape=L(ShapeSpec)(channels=8, height=4, width=4),
            num_classes="${..num_classes}",
            conv_dims=[8, 8],
        ),
    ),
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
)

_data = get_config("common/data/coco.py")
dataset, dataloader = _data.dataset, _data.dataloader
dataset.num_classes = 2
dataloader.train.mapper.augmentations = [L(T.RandomFlip)(horizontal=True)]
dataloader.train.total_batch_size = 2
dataloader.test.mapper.augmentations[0].update(short_edge_length=64, max_size=128)
dataloader.train.num_workers = dataloader.test.num_workers = 0
dataloader.evaluator.plot_curves = False  # they take longer than the rest of an evaluation

optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 1e-3

lr_multiplier = L(LinearParamScheduler)(start_value=1.0, end_value=0.1)

train = get_config("common/train.py").train
train.update(max_iter=3, eval_period=0, log_period=1, device="cpu", seed=3)
train.checkpointer.period = 100
