from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_adapter_l_augreg_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config("common/models/vit_baseline.py").vitdet_large
train.init_checkpoint = "timm://vit_large_patch16_384.augreg_in21k_ft_in1k"
