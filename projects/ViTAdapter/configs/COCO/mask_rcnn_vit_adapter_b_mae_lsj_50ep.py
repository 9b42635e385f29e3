from .mask_rcnn_vit_adapter_b_mae_lsj_25ep import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.net.drop_path_rate = 0.2
train.max_iter = 366500
lr_multiplier.scheduler.epochs = 50
