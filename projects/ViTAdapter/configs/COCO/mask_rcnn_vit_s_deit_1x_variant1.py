from .mask_rcnn_vit_s_deit_1x_variant2 import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.attention = None
