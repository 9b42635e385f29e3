"""Fine-tuned from a model trained on Objects365: 20000 iterations of 64 images."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler

from vitadapter.solver import ClippedAdamW

from .htcpp_vit_adapter_l_beitv2_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

dataloader.train.total_batch_size = 64
dataloader.train.mapper.instance_augmentation = None
dataloader.train.mapper.augmentations[0] = L(T.ResizeShortestEdge)(
    short_edge_length=(600, 1600), sample_style="range", max_size=2000
)
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=1000, max_size=2000)
]

model.backbone.norm = "GN"
model.backbone.bottom_up.use_act_checkpoint = True
_net = model.backbone.bottom_up.bottom_up.net
_net.drop_path_rate = 0.3
_net.use_act_checkpoint = True
for _box_head, _predictor in zip(
    model.roi_heads.box_heads, model.roi_heads.box_predictors, strict=True
):
    _box_head.conv_norm = "SyncBN"
    _predictor.update(box_reg_loss_type="giou", loss_weight={"loss_box_reg": 10.0})

optimizer._target_ = ClippedAdamW
optimizer.max_norm = 0.1
optimizer.params.lr_factor_func.rate = 0.8
# fvcore's ConstantParamScheduler raises an error after the last iteration.
lr_multiplier.scheduler = L(MultiStepParamScheduler)(values=[1.0], milestones=[], num_updates=1)
train.max_iter = 20000
train.ema.update(enabled=True, decay=0.9999, ramp_iters=2000)
# The official HTC++ that was trained on Objects365, a whole model.
train.init_checkpoint = (
    "https://github.com/czczup/ViT-Adapter/releases/download/v0.3.1/"
    "htc++_beitv2_adapter_large_fpn_o365.pth"
)
