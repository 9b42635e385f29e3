from vitadapter.model_zoo import get_config

from .gfl_vit_adapter_s_deit_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config("common/models/vit_baseline.py").vit_baseline_small
