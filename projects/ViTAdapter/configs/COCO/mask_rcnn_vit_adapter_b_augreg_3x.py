from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_adapter_l_augreg_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config("common/models/vit_adapter.py").vit_adapter_base
model.backbone.bottom_up.net.pretrain_img_size = 384
train.init_checkpoint = "timm://vit_base_patch16_384.augreg_in21k_ft_in1k"
