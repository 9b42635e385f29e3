from vitadapter.model_zoo import get_config

from .upernet_vit_adapter_s_dinov2_finetune import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

_net = get_config("common/models/finetune.py").dinov2_base
model.backbone.update(_net.backbone)
model.update(_net.pixels)
train.init_checkpoint = _net.weights
