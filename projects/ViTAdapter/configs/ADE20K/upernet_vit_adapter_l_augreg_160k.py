from vitadapter.model_zoo import get_config

from .upernet_vit_adapter_t_deit_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone = get_config("common/models/vit_adapter_global.py").vit_adapter_large_global
model.backbone.net.use_act_checkpoint = True
model.update(get_config("common/pixels.py").inception)
optimizer.lr = 2e-5
optimizer.weight_decay = 0.05
train.amp.enabled = False
train.init_checkpoint = "timm://vit_large_patch16_384.augreg_in21k_ft_in1k"
