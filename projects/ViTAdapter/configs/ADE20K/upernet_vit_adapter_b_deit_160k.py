from vitadapter.model_zoo import get_config

from .upernet_vit_adapter_t_deit_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone = get_config("common/models/vit_adapter_global.py").vit_adapter_base_global
optimizer.lr = 6e-5
train.init_checkpoint = "timm://deit_base_patch16_224.fb_in1k"
