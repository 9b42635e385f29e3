from vitadapter.model_zoo import get_config

from .mask2former_vit_adapter_s_dinov3_frozen_512_80k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

_base = get_config("common/models/mask2former_dinov3.py").model_base
model.backbone = _base.backbone
train.init_checkpoint = "timm://vit_base_patch16_dinov3.lvd1689m"
