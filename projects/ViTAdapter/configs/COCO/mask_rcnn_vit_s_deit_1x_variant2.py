from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_s_deit_1x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config("common/models/vit_baseline.py").vit_spatial_prior_small
