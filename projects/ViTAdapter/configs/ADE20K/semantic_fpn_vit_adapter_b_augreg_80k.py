from vitadapter.model_zoo import get_config

from .semantic_fpn_vit_adapter_t_deit_80k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config(
    "common/models/vit_adapter_global.py"
).vit_adapter_base_augreg_global
model.update(get_config("common/pixels.py").inception)
train.init_checkpoint = "timm://vit_base_patch16_384.augreg_in21k_ft_in1k"
