"""A Mask R-CNN of Detectron2's own parts that trains in a blink; follows our config layout."""

import torch
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader
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
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import LinearParamScheduler

from vitadapter.data.coco import load_coco_dataset
from vitadapter.data.dataset_mapper import DatasetMapper
from vitadapter.evaluation.coco import coco_evaluator

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

dataset = {
    "num_classes": 2,
    "train": {"name": "coco_2017_train", "json_file": None, "image_root": None},
    "test": {"name": "coco_2017_val", "json_file": None, "image_root": None},
}

dataloader = {
    "train": L(build_detection_train_loader)(
        dataset=L(load_coco_dataset)(
            name="${dataset.train.name}",
            json_file="${dataset.train.json_file}",
            image_root="${dataset.train.image_root}",
            num_classes="${dataset.num_classes}",
            masks=True,
            filter_empty=True,
            role="train",
        ),
        mapper=L(DatasetMapper)(
            is_train=True,
            augmentations=[L(T.RandomFlip)(horizontal=True)],
            image_format="${model.input_format}",
            use_instance_mask="${..dataset.masks}",
        ),
        total_batch_size=2,
        num_workers=0,
    ),
    "test": L(build_detection_test_loader)(
        dataset=L(load_coco_dataset)(
            name="${dataset.test.name}",
            json_file="${dataset.test.json_file}",
            image_root="${dataset.test.image_root}",
            num_classes="${dataset.num_classes}",
            masks="${dataloader.train.dataset.masks}",
            filter_empty=False,
            role="test",
        ),
        mapper=L(DatasetMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=64, max_size=128)],
            image_format="${model.input_format}",
        ),
        num_workers=0,
    ),
    "evaluator": L(coco_evaluator)(
        name="${dataset.test.name}",
        json_file="${dataset.test.json_file}",
        image_root="${dataset.test.image_root}",
        output_dir="${train.output_dir}/inference",
    ),
}

optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(base_lr="${..lr}"),
    lr=1e-3,
    betas=(0.9, 0.999),
    weight_decay=0.05,
)

lr_multiplier = L(LinearParamScheduler)(start_value=1.0, end_value=0.1)

train = {
    "output_dir": "./output",
    "init_checkpoint": "",
    "max_iter": 3,
    "amp": {"enabled": False},
    "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
    "checkpointer": {"period": 100, "max_to_keep": 5},
    "eval_period": 0,
    "log_period": 1,
    "device": "cpu",
    "seed": 3,
}
