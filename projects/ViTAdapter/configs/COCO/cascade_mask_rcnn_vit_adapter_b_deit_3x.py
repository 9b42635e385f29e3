from vitadapter.model_zoo import get_config

from .cascade_mask_rcnn_vit_adapter_s_deit_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config("common/models/vit_adapter.py").vit_adapter_base
train.init_checkpoint = "timm://deit_base_patch16_224.fb_in1k"
