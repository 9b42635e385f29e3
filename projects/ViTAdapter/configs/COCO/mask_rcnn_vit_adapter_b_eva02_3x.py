from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_adapter_b_dinov2_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config("common/models/timm_vit_adapter.py").vit_adapter_eva02_base
model.update(get_config("common/pixels.py").clip)
optimizer.params.lr_factor_func.rate = 0.7
train.init_checkpoint = "timm://eva02_base_patch14_224.mim_in22k"
