from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_adapter_s_dinov2_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config("common/models/vit_adapter.py").vit_adapter_base
model.backbone.bottom_up.net = get_config("common/models/vit.py").vit_base_dinov2
optimizer.params.lr_factor_func.rate = 0.6
train.init_checkpoint = "timm://vit_base_patch14_dinov2.lvd142m"
