from vitadapter.model_zoo import get_config

from .upernet_vit_adapter_b_deit_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone = get_config("common/models/vit_adapter_global.py").vit_adapter_base_light_global
