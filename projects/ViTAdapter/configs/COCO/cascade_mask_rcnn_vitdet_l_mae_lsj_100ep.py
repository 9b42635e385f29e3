"""ViTDet's own recipe: Detectron2's cascade over its simple feature pyramid, 1024 x 1024 pixels."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNConvFCHead, FastRCNNOutputLayers
from detectron2.solver import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler

from vitadapter.model_zoo import get_config
from vitadapter.modeling.backbone import SimpleFeaturePyramid
from vitadapter.solver import LayerDecay

from .mask_rcnn_vit_adapter_b_mae_lsj_50ep import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

_net = get_config("common/models/vit.py").vit_large
_net.update(pretrain_img_size=224, pad_after_qkv=False, layer_scale_init=None, use_rel_pos=True)
model.backbone = L(SimpleFeaturePyramid)(
    net=_net,
    in_feature="${.net.out_feature}",
    out_channels=256,
    scale_factors=(4.0, 2.0, 1.0, 0.5),
    top_block=L(LastLevelMaxPool)(),
    norm="LN",
    square_pad=1024,
)
model.roi_heads._target_ = CascadeROIHeads
model.roi_heads.mask_head.conv_norm = "LN"
for _single in ("box_head", "box_predictor", "proposal_matcher"):
    del model.roi_heads[_single]
model.roi_heads.update(
    box_heads=[
        L(FastRCNNConvFCHead)(
            input_shape=ShapeSpec(channels=256, height=7, width=7),
            conv_dims=[256, 256, 256, 256],
            fc_dims=[1024],
            conv_norm="LN",
        )
        for _ in range(3)
    ],
    box_predictors=[
        L(FastRCNNOutputLayers)(
            input_shape=ShapeSpec(channels=1024),
            num_classes="${...num_classes}",
            test_score_thresh=0.05,
            box2box_transform=L(Box2BoxTransform)(weights=(center, center, size, size)),
            cls_agnostic_bbox_reg=True,
        )
        for center, size in [(10, 5), (20, 10), (30, 15)]
    ],
    proposal_matchers=[
        L(Matcher)(thresholds=[iou], labels=[0, 1], allow_low_quality_matches=False)
        for iou in (0.5, 0.6, 0.7)
    ],
)

dataloader.train.total_batch_size = 64
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=1024, max_size=1024)
]
optimizer.weight_decay = 0.1
optimizer.params = L(get_default_optimizer_params)(
    base_lr="${..lr}",
    weight_decay="${..weight_decay}",
    weight_decay_norm=0.0,
    lr_factor_func=L(LayerDecay)(rate=0.8, num_layers="${model.backbone.net.depth}"),
    overrides={"pos_embed": {"weight_decay": 0.0}},
)
lr_multiplier.scheduler = L(MultiStepParamScheduler)(
    values=[1.0, 0.1, 0.01], milestones=[163889, 177546], num_updates=184375
)
lr_multiplier.warmup_iters = 250
# 100 epochs of 118 thousand images
train.max_iter = 184375
train.ddp.fp16_compression = True
train.init_checkpoint = "timm://vit_large_patch16_224.mae"
# The scales of the published figures are not known; those of more than 1024 pixels have to fit in.
train.inference.tta.overrides = ["model.backbone.square_pad=0"]
