"""Trained as DINOv2."""

from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_adapter_s_dinov2_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config("common/models/timm_vit_adapter.py").vit_adapter_dinov3_small
train.init_checkpoint = "timm://vit_small_patch16_dinov3.lvd1689m"
