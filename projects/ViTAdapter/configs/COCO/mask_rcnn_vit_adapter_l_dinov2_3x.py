from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_adapter_s_dinov2_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config("common/models/vit_adapter.py").vit_adapter_large
model.backbone.bottom_up.net = get_config("common/models/vit.py").vit_large_dinov2
optimizer.params.lr_factor_func.rate = 0.65
train.init_checkpoint = "timm://vit_large_patch14_dinov2.lvd142m"
