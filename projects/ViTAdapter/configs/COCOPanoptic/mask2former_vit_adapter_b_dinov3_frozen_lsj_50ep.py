from vitadapter.model_zoo import get_config

from .mask2former_vit_adapter_s_dinov3_frozen_lsj_50ep import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone = get_config("common/models/timm_vit_adapter.py").vit_adapter_dinov3_base_frozen
train.init_checkpoint = "timm://vit_base_patch16_dinov3.lvd1689m"
