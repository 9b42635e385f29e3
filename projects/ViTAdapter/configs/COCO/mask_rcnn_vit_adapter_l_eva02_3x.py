from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_adapter_b_eva02_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config("common/models/timm_vit_adapter.py").vit_adapter_eva02_large
optimizer.params.lr_factor_func.rate = 0.8
train.init_checkpoint = "timm://eva02_large_patch14_224.mim_m38m"
