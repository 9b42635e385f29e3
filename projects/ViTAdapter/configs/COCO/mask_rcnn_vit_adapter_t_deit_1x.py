from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_adapter_s_deit_1x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config("common/models/vit_adapter.py").vit_adapter_tiny
optimizer.lr = 2e-4
optimizer.weight_decay = 0.01
train.init_checkpoint = "timm://deit_tiny_patch16_224.fb_in1k"
